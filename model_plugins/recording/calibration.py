"""Keeps what routers see, and can keep a modality from a layer's experts. Eager engines only."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prismoe.kernels.routing import PADDING
from prismoe.model_plugins.moe_layer.model_routing import ModelRouting
from prismoe.model_plugins.routing.policy import POLICY_MODALITIES, RoutingPolicy
from prismoe.model_plugins.routing.registry import choose_routing


class CalibrationRecorder:
    """What one request's prefill step held; whole requests, one at a time, are what it is for.

    `deprived` is a layer and a modality whose tokens get nothing of that layer's experts, which is how
    MoDES measures what a layer is worth.
    """

    deprived: tuple[int, str] | None = None

    def __init__(self, model: nn.Module, routing: ModelRouting) -> None:
        self._model: Any = model
        self._step = routing.step
        self._routing: Any = routing
        self._own_policies: dict[int, RoutingPolicy] = {}
        self._routers: dict[int, tuple[Tensor, Tensor]] = {}
        self._segment_T = self._is_token_T = self._final_TD = torch.empty(0)
        self._draw = torch.Generator().manual_seed(0)
        for layer, router in routing.routers.items():
            router.observer = partial(self._observe, layer)
        model.register_forward_hook(self._end_step)

    def take(self, hidden: int) -> Mapping[str, np.ndarray]:
        """`segments`, a random `sample` of at most `hidden` tokens, and by layer `{N}_logits` of all tokens
        and `{N}_hidden` of the sample.
        """
        sample = torch.randperm(len(self._segment_T), generator=self._draw)[:hidden].sort().values
        rows = {"segments": self._segment_T, "sample": sample}
        for layer, (hidden_TD, logits_TE) in self._routers.items():
            rows |= {f"{layer}_logits": logits_TE, f"{layer}_hidden": hidden_TD[sample.to(hidden_TD.device)]}
        return {name: (v.float() if v.is_floating_point() else v).cpu().numpy() for name, v in rows.items()}

    def try_routing(self, routing: Mapping[str, Any] | None, top_k: int) -> None:
        """Route by these settings from the next step on, as a checkpoint with this k would; None: as before.

        Their policies may use no more slots than the model's own.
        """
        routers = self._routing.routers
        self._own_policies = self._own_policies or {layer: one.policy for layer, one in routers.items()}
        policies = self._own_policies
        if routing is not None:
            experts = {layer: shape.experts for layer, shape in self._routing.layers.items()}
            in_force = choose_routing(None, routing, top_k, experts)
            policies = {layer: chosen.policy for layer, chosen in in_force.layers.items()}
        for layer, policy in policies.items():
            routers[layer].policy = policy

    def log_probs(self, tokens: int) -> np.ndarray:
        """Log-probabilities after each of the step's last `tokens`, `[tokens, vocabulary]`."""
        logits = self._model.compute_logits(self._final_TD[-tokens:])
        log_probs: np.ndarray = torch.log_softmax(logits.float(), dim=-1).cpu().numpy()
        return log_probs

    def _observe(
        self, layer: int, hidden_TD: Tensor, logits_TE: Tensor, _experts_TA: Tensor, weights_TA: Tensor
    ) -> None:
        segment_T = self._step.tokens.segments[: len(hidden_TD)]
        self._is_token_T = segment_T != PADDING
        self._segment_T = segment_T[self._is_token_T]
        self._routers[layer] = hidden_TD[self._is_token_T], logits_TE[self._is_token_T]
        if self.deprived and self.deprived[0] == layer:
            is_deprived_T = (segment_T >= 0) == (self.deprived[1] == POLICY_MODALITIES[1])
            weights_TA.masked_fill_(is_deprived_T[:, None], 0)

    def _end_step(self, _: nn.Module, __: tuple[Any, ...], hidden_TD: Tensor) -> None:
        self._final_TD = hidden_TD[self._is_token_T]
