"""Policy `native` of models whose layers have experts for text and experts for vision: ERNIE-4.5-VL.

Each kind has a router of its own, which sees the tokens of its kind alone, one behind the other. Both are
counted as one layer, in which the text experts come first, as in the names of a checkpoint's weights. The
model says which tokens are of which kind: marks around an image or a video are text that vision experts take.
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
    """Of which kinds the running step's tokens are, and where those of each lie. Dummy steps are text."""

    def __init__(self) -> None:
        self.kinds: Collection[Kind] = {"text"}
        self._places: Mapping[Kind, Tensor] = {}

    def begin_step(self, is_vision_T1: Tensor | None) -> None:
        """Look at a step as the model does, which asks the same of each layer."""
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
        """A row for each token of the step, of the compacted rows of each kind; zeros where it has none."""
        first = next(iter(rows.values()))
        if len(self.kinds) == 1:
            return first
        tokens = sum(map(len, self._places.values()))
        spread = first.new_zeros(tokens, *first.shape[1:])
        for kind, of_kind in rows.items():
            spread[self._places[kind]] = of_kind
        return spread


class RoutedKind(NamedTuple):
    """What a router made of the P tokens of its kind; a kernel that routes by itself tells experts alone."""

    experts_PA: Tensor
    weights_PA: Tensor | None = None
    logits_PE: Tensor | None = None
    hidden_PD: Tensor | None = None


class SplitLayer:
    """Stands beside the routers of one MoE layer, and writes down what they decide as one router's decision.

    `first_experts` are the kinds that have experts here, with the number of the first expert of each. `gate`
    is the one or the other's: they differ in their biases alone.
    """

    observer: Observer | None = None
    """It sees each token's logits by the router of its kind."""

    def __init__(
        self, step: RoutingStep, place: int, kinds: StepKinds, first_experts: Mapping[Kind, int], gate: Gate
    ) -> None:
        self.gate = gate
        self._step, self._place, self._kinds = step, place, kinds
        self._first_experts = first_experts
        self._routed: dict[Kind, RoutedKind] = {}

    def begin_step(self) -> None:
        """Forget a step that broke off. A kind that is dense uses no experts, and no router says so."""
        self._routed = {}
        if len(self._first_experts) == 1:
            self._step.counts[self._place].zero_()

    def routed(
        self, kind: Kind, hidden_PD: Tensor, logits_PE: Tensor, weights_PA: Tensor, experts_PA: Tensor
    ) -> None:
        """What the router of a kind made of its tokens."""
        self._add(kind, RoutedKind(experts_PA, weights_PA, logits_PE, hidden_PD))

    def chosen(self, kind: Kind, experts_PA: Tensor) -> None:
        """The experts that a kernel chose which routes by itself."""
        self._add(kind, RoutedKind(experts_PA))

    def _add(self, kind: Kind, routed: RoutedKind) -> None:
        """Keep it, and write the layer's rows when the last of the step's kinds is there."""
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
            self._kinds.spread(rows) if (rows := _told(routed, name)) else None
            for name in RoutedKind._fields[1:]
        )
        confidence = None if logits_TE is None else Confidence(logits_TE)
        self._step.write(self._place, experts_TA, weights_TA, self._kinds.spread(used), None, confidence)
        if self.observer is not None and hidden_TD is not None:
            assert logits_TE is not None and weights_TA is not None  # a router tells all or nothing
            self.observer(hidden_TD, logits_TE, experts_TA, weights_TA)


def _told(routed: Mapping[Kind, RoutedKind], part: str) -> dict[Kind, Tensor]:
    """A part of what the routers made, if they told it."""
    rows = {kind: getattr(one, part) for kind, one in routed.items()}
    return {} if any(of_kind is None for of_kind in rows.values()) else rows


class SplitRouting(ModelRouting):
    """The MoE layers of such a model, which routes as vLLM has it. Where they can't be seen it says why.

    Raises ValueError with a sentence where there are shadow policies, which it can't follow.
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
        if shadow is not None and (alone := why_native_alone(architecture)):
            raise ValueError(alone)
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
        self._model = (model,)  # no part of this module
        self._kinds = StepKinds()
        self._layers: dict[int, SplitLayer] = {}
        self._told: dict[int, Mapping[str, Any]] = {}
        for place, (layer, by_kind) in enumerate(by_layer.items()):
            first_experts = {kind: 0 if kind == "text" else shapes[layer].experts // 2 for kind in by_kind}
            gate = gate_of(next(iter(by_kind.values())))
            split = SplitLayer(self.step, place, self._kinds, first_experts, gate)
            self._layers[layer] = split
            if len(by_kind) == 2:  # or an observer would miss the tokens of the other kind
                self.routers[layer] = split
            self._told[layer] = _describe(gate, by_kind, first_experts)
            for kind, runner in by_kind.items():
                if routes_by_itself(runner):
                    put_sink(runner, partial(split.chosen, kind))
                else:
                    assert isinstance(runner.router, BaseRouter)  # or it could not be seen
                    watch_routing(runner.router, partial(split.routed, kind))
        if runners:
            mark_steps_of(architecture, model, self.step)
            split_experts.watch_kinds(model, self._begin_step)

    def begin_made_up_step(self, num_tokens: int) -> None:
        """Each other token is vision's: without media the model would ask the text experts alone."""
        split_experts.part_next_step(*self._model, torch.arange(num_tokens)[:, None] % 2 == 1)

    def _begin_step(self, is_vision_T1: Tensor | None) -> None:
        self._kinds.begin_step(is_vision_T1)
        for split in self._layers.values():
            split.begin_step()

    def source(self) -> str:
        return "model"

    def describe_layer(self, layer: int) -> Mapping[str, Any]:
        return self._told[layer]


def _shape(runners: Sequence[MoERunner]) -> LayerShape:
    """Of a layer with these runners, of one kind or both; vLLM gives both kinds as many experts.

    No near ties: each router's are among its own experts. No confidence where some tokens have no router.
    """
    of_kind: int = runners[0].moe_config.num_logical_experts
    has_both = len(runners) == 2
    is_scored = has_both and not any(map(routes_by_itself, runners))
    return LayerShape(
        2 * of_kind,
        runners[0].routed_experts.top_k,
        scored=of_kind if is_scored else 0,
        uses_all_slots=has_both,
        tells_ties=False,
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
