"""Records routers' inputs, and can withhold a layer's experts from a modality. Eager engines only."""

from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from prismoe.kernels.routing import PADDING
from prismoe.model_plugins.moe_layer.model_routing import ModelRouting
from prismoe.model_plugins.routing.gate import Gate
from prismoe.model_plugins.routing.measures import Measure, measured
from prismoe.model_plugins.routing.policy import POLICY_MODALITIES


class TokenValues(NamedTuple):
    """The values to record for each token in each MoE layer, as the policy that is fitted will see them."""

    measure: Measure | None
    top_k: int
    renormalises: bool
    sampled: int = 0
    """The number of a request's tokens whose logits of the gate are kept."""
    with_hidden: bool = False
    """Whether these tokens' hidden states are kept, too."""


class CalibrationRecorder:
    """Records what a request's steps hold; for whole requests, one at a time.

    The final hidden states are kept for the last `most_answered` tokens. `deprived` is a layer and a modality
    whose tokens get nothing from that layer's experts, which is how MoDES measures a layer's importance.
    """

    deprived: tuple[int, str] | None = None

    def __init__(
        self, model: nn.Module, routing: ModelRouting, values: TokenValues, most_answered: int
    ) -> None:
        self._model: Any = model
        self._step = routing.step
        self._values, self._most_answered = values, most_answered
        self._segment_T, self._final_TD = torch.empty(0), torch.empty(0)
        self._is_recording = False
        self._steps: dict[str, list[Tensor]] = defaultdict(list)
        for layer, router in routing.routers.items():
            router.observer = partial(self._observe, layer, router.gate)
        model.register_forward_hook(self._end_step)

    def begin(self) -> None:
        """Record the next request, until `take`."""
        self._steps.clear()
        self._is_recording = True

    def take(self, seed: int) -> Mapping[str, np.ndarray]:
        """The recorded arrays, by name.

        `is_vision` and each layer's `{N}_measure` are of all tokens. `{N}_logits` and `{N}_hidden`, if
        recorded, are of the tokens `sample`, which are drawn by `seed`.
        """
        self._is_recording = False
        rows = {name: torch.cat(steps) for name, steps in self._steps.items()}
        self._steps.clear()
        draw = torch.Generator().manual_seed(seed)
        sample = torch.randperm(len(rows["is_vision"]), generator=draw)[: self._values.sampled].sort().values
        for name, kept in rows.items():
            if name.endswith(("_logits", "_hidden")):
                rows[name] = kept[sample.to(kept.device)]
        rows["sample"] = sample
        return {name: (v.float() if v.is_floating_point() else v).cpu().numpy() for name, v in rows.items()}

    def log_probs(self, tokens: int) -> np.ndarray:
        """The log-probabilities after each of the request's last `tokens`, `[tokens, vocabulary]`."""
        logits = self._model.compute_logits(self._final_TD[-tokens:])
        log_probs: np.ndarray = torch.log_softmax(logits.float(), dim=-1).cpu().numpy()
        return log_probs

    def _observe(
        self,
        layer: int,
        gate: Gate,
        hidden_TD: Tensor,
        logits_TE: Tensor,
        _experts_TA: Tensor,
        weights_TA: Tensor,
    ) -> None:
        self._segment_T = segment_T = self._step.tokens.segments[: len(hidden_TD)]
        if self._is_recording:
            self._record(layer, gate, hidden_TD, logits_TE)
        if self.deprived and self.deprived[0] == layer:
            is_deprived_T = (segment_T >= 0) == (self.deprived[1] == POLICY_MODALITIES[1])
            weights_TA.masked_fill_(is_deprived_T[:, None], 0)

    def _record(self, layer: int, gate: Gate, hidden_TD: Tensor, logits_TE: Tensor) -> None:
        is_token_T = self._segment_T != PADDING
        if self._values.measure is not None:
            confidence = gate.confidence(logits_TE[is_token_T])
            values_TC = measured(
                self._values.measure, confidence, self._values.top_k, self._values.renormalises
            )
            self._keep(f"{layer}_measure", values_TC)
        if self._values.sampled:
            self._keep(f"{layer}_logits", logits_TE[is_token_T])
        if self._values.with_hidden:
            self._keep(f"{layer}_hidden", hidden_TD[is_token_T])

    def _end_step(self, _: nn.Module, __: tuple[Any, ...], hidden_TD: Tensor) -> None:
        is_token_T = self._segment_T != PADDING
        if self._is_recording:
            self._keep("is_vision", self._segment_T[is_token_T] >= 0)
        last_TD = hidden_TD[is_token_T][-self._most_answered :]
        if len(last_TD) < self._most_answered and len(self._final_TD):
            last_TD = torch.cat([self._final_TD, last_TD])[-self._most_answered :]
        self._final_TD = last_TD.clone()

    def _keep(self, name: str, rows: Tensor) -> None:
        self._steps[name].append(rows.clone())
