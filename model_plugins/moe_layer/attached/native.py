"""Policy `native`: a model routes as in vLLM, and prismoe reads along.

vLLM's choice of kernels, the gate's bias and groups, the mapping of experts to ranks and vLLM's own capture
of experts stay unchanged. A shadow policy routes the same tokens a second time, and is counted separately.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from vllm.config import VllmConfig
from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter
from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner
from vllm.platforms import current_platform

from prismoe.kernels.expert_load import Confidence, LayerShape, ScoredTokens
from prismoe.model_plugins.moe_layer.attached.attach import gate_of, mark_steps_of, seen_runners
from prismoe.model_plugins.moe_layer.attached.shadow import ShadowLayer, ShadowPolicies
from prismoe.model_plugins.moe_layer.model_routing import ModelRouting
from prismoe.model_plugins.moe_layer.router import Observer
from prismoe.model_plugins.moe_layer.step import RoutingStep
from prismoe.model_plugins.routing import NATIVE
from prismoe.model_plugins.routing.any_gate import OperatorPolicies
from prismoe.model_plugins.routing.gate import Gate
from prismoe.model_plugins.vllm_seams.engine.experts_sink import put_sink, routes_by_itself
from prismoe.model_plugins.vllm_seams.engine.native_router import watch_routing


class NativeLayer:
    """Records the decisions of one MoE layer's router, and has its shadow policy route the same tokens."""

    observer: Observer | None = None

    def __init__(self, runner: MoERunner, step: RoutingStep, place: int, shadow: ShadowLayer | None) -> None:
        self.gate = gate_of(runner)
        self._step, self._place, self._shadow = step, place, shadow

    def routed(self, hidden_TD: Tensor, logits_TE: Tensor, weights_TA: Tensor, experts_TA: Tensor) -> None:
        """Record the router's decision for a step."""
        self._step.write(self._place, experts_TA, weights_TA, None, None, Confidence(logits_TE))
        if self._shadow is not None:
            self._shadow.follow(hidden_TD, logits_TE)
        if self.observer is not None:
            self.observer(hidden_TD, logits_TE, experts_TA, weights_TA)

    def chosen(self, experts_TA: Tensor) -> None:
        """Record the experts chosen by a kernel that routes by itself."""
        self._step.write(self._place, experts_TA, None)


class NativeRouting(ModelRouting):
    """The MoE layers of a model that vLLM has loaded; none, and the reason, where they can't be seen.

    `shadow` are policies that are counted beside them; raises ValueError where these can't route the model.
    `found_wrong` is the reason why the layers can't be seen, if a test step found one.
    """

    routed_by = "native"

    def __init__(
        self,
        vllm_config: VllmConfig,
        model: nn.Module,
        modalities: Sequence[str],
        shadow: OperatorPolicies | None = None,
        found_wrong: str | None = None,
    ) -> None:
        architecture = vllm_config.model_config.architecture
        runners, not_supported = seen_runners(architecture, model, modalities, found_wrong)
        shapes = {runner.layer_id: _shape(runner) for runner in runners}
        max_tokens = vllm_config.scheduler_config.max_num_batched_tokens
        super().__init__(architecture, modalities, shapes, max_tokens)
        self.not_supported = not_supported
        self.to(next(model.parameters()).device)
        if current_platform.is_cuda():
            self.step.write_by_kernel()
        # Before the routers are watched, since its checks call them.
        self.shadow = (
            None if shadow is None else ShadowPolicies(vllm_config, model, modalities, shadow, self.step)
        )
        self._top_k = {runner.layer_id: runner.routed_experts.top_k for runner in runners}
        self._gates: dict[int, Gate] = {}
        for place, runner in enumerate(runners):
            beside = None if self.shadow is None else self.shadow.followers[runner.layer_id]
            layer = NativeLayer(runner, self.step, place, beside)
            self.routers[runner.layer_id] = layer
            self._gates[runner.layer_id] = layer.gate
            if routes_by_itself(runner):
                put_sink(runner, layer.chosen)
            else:
                assert isinstance(runner.router, BaseRouter)  # `why_unseen` refuses others
                watch_routing(runner.router, layer.routed)
        self.counter.as_scored = self._scored
        if runners:
            mark_steps_of(architecture, model, self.step)

    def _scored(self, written: ScoredTokens) -> ScoredTokens:
        """Turn the logits that the layers wrote into probabilities and scores."""
        most = written.logits_LTE.shape[2]
        parts = [
            gate.confidence(logits_TE[:, : shape.scored]) if shape.scored else Confidence(logits_TE)
            for gate, shape, logits_TE in zip(
                self._gates.values(), self.layers.values(), written.logits_LTE, strict=True
            )
        ]
        logits_LTE, scores_LTE = (
            torch.stack([pad(rows_TE, (0, most - rows_TE.shape[1])) for rows_TE in rows])
            for rows in (
                [part.logits_TE for part in parts],
                [part.logits_TE if part.scores_TE is None else part.scores_TE for part in parts],
            )
        )
        return written._replace(logits_LTE=logits_LTE, scores_LTE=scores_LTE)

    def counted(self) -> Sequence[ModelRouting]:
        return [self] if self.shadow is None else [self, self.shadow]

    def end_step(self) -> None:
        if self.shadow is not None:
            self.shadow.counter.add(self.shadow.step)
        super().end_step()

    def load(self) -> Mapping[str, Any]:
        return {**super().load(), "shadow": None if self.shadow is None else self.shadow.load()}

    def reset_load(self) -> None:
        super().reset_load()
        if self.shadow is not None:
            self.shadow.reset_load()

    def source(self) -> str:
        return "model"

    def describe(self) -> Mapping[str, Any]:
        described = super().describe()
        if self.shadow is None:
            return described
        return {
            **described,
            "shadow": [layer | self.shadow.describe_layer(layer["layer"]) for layer in described["layers"]],
        }

    def describe_layer(self, layer: int) -> Mapping[str, Any]:
        return {
            "top_k": self._top_k[layer],
            "gate": str(self._gates[layer]),
            "policy": NATIVE,
            "sources": {"policy": "model"},
        }


def _shape(runner: MoERunner) -> LayerShape:
    gate, experts = gate_of(runner), runner.routed_experts
    num_experts: int = runner.moe_config.num_logical_experts
    is_scored = gate.scoring is not None and not routes_by_itself(runner)
    return LayerShape(
        num_experts,
        experts.top_k,
        scored=num_experts if is_scored else 0,
        has_scores=gate.bias_E is not None,
        uses_all_slots=True,
        has_near_ties=is_scored and gate.groups is None,
    )
