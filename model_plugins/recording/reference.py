"""Records what a model computes for each token, by the names in a reference file. Eager engines only."""

from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prismoe.kernels.routing import PADDING
from prismoe.model_plugins.moe_layer.model_routing import ModelRouting


class ReferenceRecorder:
    """Keeps a row for each token since the last `take`, in the order of computation."""

    def __init__(self, model: nn.Module, routing: ModelRouting) -> None:
        self._model: Any = model
        self._step = routing.step
        self._steps: dict[str, list[Tensor]] = defaultdict(list)
        for layer, router in routing.routers.items():
            router.observer = partial(self._keep_routing, layer)
        model.register_forward_pre_hook(self._begin_step, with_kwargs=True)
        model.register_forward_hook(self._end_step)

    def take(self) -> Mapping[str, np.ndarray]:
        """The arrays: `inputs_embeds`, `layer{N}_router_logits`, `_topk_ids`, `_topk_weights`, `logits`."""
        rows = {name: torch.cat(steps) for name, steps in self._steps.items()}
        self._steps.clear()
        rows["logits"] = self._model.compute_logits(rows.pop("final_hidden"))
        # NumPy has no bfloat16.
        return {
            name: (values.float() if values.is_floating_point() else values).cpu().numpy()
            for name, values in rows.items()
        }

    def _begin_step(self, _: nn.Module, __: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        embeds_TD: Tensor = inputs["inputs_embeds"]
        self._is_token_T = self._step.tokens.segments[: len(embeds_TD)] != PADDING
        self._keep("inputs_embeds", embeds_TD)

    def _keep_routing(
        self, layer: int, _hidden_TD: Tensor, logits_TE: Tensor, experts_TA: Tensor, weights_TA: Tensor
    ) -> None:
        self._keep(f"layer{layer}_router_logits", logits_TE)
        self._keep(f"layer{layer}_topk_ids", experts_TA)
        self._keep(f"layer{layer}_topk_weights", weights_TA)

    def _end_step(self, _: nn.Module, __: tuple[Any, ...], hidden_TD: Tensor) -> None:
        self._keep("final_hidden", hidden_TD)

    def _keep(self, name: str, rows: Tensor) -> None:
        self._steps[name].append(rows[self._is_token_T].clone())
