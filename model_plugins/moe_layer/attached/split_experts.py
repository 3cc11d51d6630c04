"""Policy `native` for models whose layers have text experts and vision experts: ERNIE-4.5-VL.

Each kind of experts has its own router, which sees only the tokens of its kind, one after the other. Both are
counted as one layer, in which the text experts come first, as in the names of a checkpoint's weights. The
model decides which tokens belong to which kind: marks around an image or a video are text tokens that vision
experts take.
"""

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter
from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner
from vllm.platforms import current_platform

from prismoe.kernels.expert_load import Confidence, LayerShape
from prismoe.model_plugins.moe_layer.attached.attach import (
    gate_of,
    mark_steps_of,
    seen_runners,
    why_native_alone,
)
from prismoe.model_plugins.moe_layer.model_routing import ModelRouting
from prismoe.model_plugins.moe_layer.router import Observer
from prismoe.model_plugins.moe_layer.step import RoutingStep
from prismoe.model_plugins.routing import NATIVE
from prismoe.model_plugins.routing.any_gate import OperatorPolicies
from prismoe.model_plugins.routing.gate import Gate
from prismoe.model_plugins.vllm_seams.check import check
from prismoe.model_plugins.vllm_seams.engine import split_experts
from prismoe.model_plugins.vllm_seams.engine.experts_sink import put_sink, routes_by_itself
from prismoe.model_plugins.vllm_seams.engine.native_router import watch_routing
from prismoe.model_plugins.vllm_seams.engine.split_experts import Kind


class StepKinds:
    """The kinds of the running step's tokens, and the positions of each kind. Dummy steps are text."""

    def __init__(self) -> None:
        self.kinds: Collection[Kind] = {"text"}
        self._places: Mapping[Kind, Tensor] = {}

    def begin_step(self, is_vision_T1: Tensor | None) -> None:
        """Split a step by kind, as the model does for each layer."""
        self._places = {}
        if is_vision_T1 is None or not is_vision_T1.any():
            self.kinds = {"text"}
        elif is_vision_T1.all():
            self.kinds = {"vision"}
        else:
            is_vision_T = is_vision_T1.flatten()
            self._places = {"text": (~is_vision_T).nonzero()[:, 0], "vision": is_vision_T.nonzero()[:, 0]}
            self.kinds = {*self._places}

    def spread(self, rows: Mapping[Kind, Tensor]) -> Tensor:
        """Spread the compacted rows of each kind over the step's tokens; zeros where a token has no row."""
        first = next(iter(rows.values()))
        if len(self.kinds) == 1:
            return first
        tokens = sum(map(len, self._places.values()))
        spread = first.new_zeros(tokens, *first.shape[1:])
        for kind, of_kind in rows.items():
            spread[self._places[kind]] = of_kind
        return spread


class RoutedKind(NamedTuple):
    """A router's decision for the P tokens of its kind; a kernel that routes by itself gives only experts."""

    experts_PA: Tensor
    weights_PA: Tensor | None = None
    logits_PE: Tensor | None = None
    hidden_PD: Tensor | None = None


class SplitLayer:
    """Records the decisions of one MoE layer's routers as the decision of one router.

    `first_experts` holds the kinds that have experts in this layer, with the number of each kind's first
    expert. `gate` is that of either kind: the gates differ only in their biases.
    """

    observer: Observer | None = None
    """The observer sees each token's logits from the router of the token's kind."""

    def __init__(
        self, step: RoutingStep, place: int, kinds: StepKinds, first_experts: Mapping[Kind, int], gate: Gate
    ) -> None:
        self.gate = gate
        self._step, self._place, self._kinds = step, place, kinds
        self._first_experts = first_experts
        self._routed: dict[Kind, RoutedKind] = {}

    def begin_step(self) -> None:
        """Forget a step that broke off. Tokens of a dense kind use no experts, and no router reports them."""
        self._routed = {}
        if len(self._first_experts) == 1:
            self._step.counts[self._place].zero_()

    def routed(
        self, kind: Kind, hidden_PD: Tensor, logits_PE: Tensor, weights_PA: Tensor, experts_PA: Tensor
    ) -> None:
        """Record the decision of a kind's router for its tokens."""
        self._add(kind, RoutedKind(experts_PA, weights_PA, logits_PE, hidden_PD))

    def chosen(self, kind: Kind, experts_PA: Tensor) -> None:
        """Record the experts chosen by a kernel that routes by itself."""
        self._add(kind, RoutedKind(experts_PA))

    def _add(self, kind: Kind, routed: RoutedKind) -> None:
        """Keep the decision, and write the layer's rows once all of the step's kinds are there."""
        experts_PA = routed.experts_PA.int() + self._first_experts[kind]
        self._routed[kind] = routed._replace(experts_PA=experts_PA)
        if {*self._routed} == {*self._kinds.kinds} & {*self._first_experts}:
            self._write(self._routed)
            self._routed = {}

    def _write(self, routed: Mapping[Kind, RoutedKind]) -> None:
        used = {
            kind: torch.full_like(one.experts_PA[:, 0], one.experts_PA.shape[1])
            for kind, one in routed.items()
        }
        experts_TA = self._kinds.spread({kind: one.experts_PA for kind, one in routed.items()})
        weights_TA, logits_TE, hidden_TD = (
            self._kinds.spread(rows) if (rows := _rows_of(routed, name)) else None
            for name in RoutedKind._fields[1:]
        )
        confidence = None if logits_TE is None else Confidence(logits_TE)
        self._step.write(self._place, experts_TA, weights_TA, self._kinds.spread(used), None, confidence)
        if self.observer is not None and hidden_TD is not None:
            assert logits_TE is not None and weights_TA is not None  # a router gives all or nothing
            self.observer(hidden_TD, logits_TE, experts_TA, weights_TA)


def _rows_of(routed: Mapping[Kind, RoutedKind], part: str) -> dict[Kind, Tensor]:
    """A field of every kind's decision, by kind; empty if one of them lacks it."""
    rows = {kind: getattr(one, part) for kind, one in routed.items()}
    return {} if any(of_kind is None for of_kind in rows.values()) else rows


class SplitRouting(ModelRouting):
    """The MoE layers of such a model, which routes as in vLLM; none, and the reason, if they can't be seen.

    Raises ValueError for shadow policies, which it doesn't support.
    """

    routed_by = "native"

    def __init__(
        self,
        vllm_config: VllmConfig,
        model: nn.Module,
        modalities: Sequence[str],
        shadow: OperatorPolicies | None = None,
    ) -> None:
        architecture = vllm_config.model_config.architecture
        if shadow is not None and (refusal := why_native_alone(architecture)):
            raise ValueError(refusal)
        check(split_experts.NEEDS)
        runners, not_supported = seen_runners(architecture, model, modalities)
        by_layer: dict[int, dict[Kind, MoERunner]] = {}
        for runner in runners:
            by_layer.setdefault(runner.layer_id, {})[split_experts.kind_of(runner)] = runner
        shapes = {layer: _shape([*by_kind.values()]) for layer, by_kind in by_layer.items()}
        super().__init__(
            architecture, modalities, shapes, vllm_config.scheduler_config.max_num_batched_tokens
        )
        self.not_supported = not_supported
        self.to(next(model.parameters()).device)
        if current_platform.is_cuda():
            self.step.write_by_kernel()
        self._model = (model,)  # in a tuple, so that it does not become a submodule
        self._kinds = StepKinds()
        self._layers: dict[int, SplitLayer] = {}
        self._described: dict[int, Mapping[str, Any]] = {}
        for place, (layer, by_kind) in enumerate(by_layer.items()):
            first_experts = {kind: 0 if kind == "text" else shapes[layer].experts // 2 for kind in by_kind}
            gate = gate_of(next(iter(by_kind.values())))
            split = SplitLayer(self.step, place, self._kinds, first_experts, gate)
            self._layers[layer] = split
            if len(by_kind) == 2:  # otherwise an observer would miss the tokens of the other kind
                self.routers[layer] = split
            self._described[layer] = _describe(gate, by_kind, first_experts)
            for kind, runner in by_kind.items():
                if routes_by_itself(runner):
                    put_sink(runner, partial(split.chosen, kind))
                else:
                    assert isinstance(runner.router, BaseRouter)  # `why_unseen` refuses others
                    watch_routing(runner.router, partial(split.routed, kind))
        if runners:
            mark_steps_of(architecture, model, self.step)
            split_experts.watch_kinds(model, self._begin_step)

    def begin_made_up_step(self, num_tokens: int) -> None:
        """Make every second token a vision token: otherwise the model would only call the text experts."""
        split_experts.part_next_step(*self._model, torch.arange(num_tokens)[:, None] % 2 == 1)

    def _begin_step(self, is_vision_T1: Tensor | None) -> None:
        self._kinds.begin_step(is_vision_T1)
        for split in self._layers.values():
            split.begin_step()

    def source(self) -> str:
        return "model"

    def describe_layer(self, layer: int) -> Mapping[str, Any]:
        return self._described[layer]


def _shape(runners: Sequence[MoERunner]) -> LayerShape:
    """The shape of a layer with these runners, of one kind or both; vLLM gives both kinds as many experts.

    Near ties are not counted, since each router ranks only its own experts. A layer where some tokens have no
    router has no confidence.
    """
    of_kind: int = runners[0].moe_config.num_logical_experts
    has_both = len(runners) == 2
    is_scored = has_both and not any(map(routes_by_itself, runners))
    return LayerShape(
        2 * of_kind,
        runners[0].routed_experts.top_k,
        scored=of_kind if is_scored else 0,
        uses_all_slots=has_both,
        has_near_ties=False,
    )


def _describe(
    gate: Gate, by_kind: Mapping[Kind, MoERunner], first_experts: Mapping[Kind, int]
) -> Mapping[str, Any]:
    experts = {kind: runner.moe_config.num_logical_experts for kind, runner in by_kind.items()}
    ranges = [f"{first} to {first + experts[kind] - 1} are {kind}'s" for kind, first in first_experts.items()]
    return {
        "top_k": next(iter(by_kind.values())).routed_experts.top_k,
        "gate": f"{gate}; experts {', '.join(ranges)}",
        "policy": NATIVE,
        "sources": {"policy": "model"},
    }
