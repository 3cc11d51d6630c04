"""Policy `native`: a model routes as vLLM has it, and prismoe reads along.

Everything is attached to the instances of a loaded model: vLLM's choice of kernels, the gate's bias and
groups, the mapping of experts to ranks and vLLM's own capture of experts stay as they are.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, pad, softplus
from vllm.config import VllmConfig
from vllm.logger import init_logger
from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter
from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner
from vllm.platforms import current_platform

from prismoe.kernels.expert_load import Confidence, LayerShape, ScoredTokens
from prismoe.kernels.modalities import MODALITIES
from prismoe.model_plugins.moe_layer.miscounted import MISCOUNTED
from prismoe.model_plugins.moe_layer.model_routing import ModelRouting, kernel_name, runners_of
from prismoe.model_plugins.moe_layer.router import Observer
from prismoe.model_plugins.moe_layer.step import Media, RoutingStep
from prismoe.model_plugins.routing import NATIVE, ONLY_NATIVE
from prismoe.model_plugins.vllm_seams.experts_sink import has_sink, put_sink, routes_by_itself
from prismoe.model_plugins.vllm_seams.native_router import chooses_by_tokens, watch_routing

logger = init_logger("vllm.prismoe.native")

SCORES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "softmax": (lambda logits: logits, lambda logits: torch.softmax(logits, dim=-1)),
    "sigmoid": (logsigmoid, torch.sigmoid),
    "sqrtsoftplus": (lambda logits: softplus(logits).log() / 2, lambda logits: softplus(logits).sqrt()),
}
"""By vLLM's name of what makes scores of logits: the logarithm of the scores, and the scores. A router's
probabilities are its scores over their sum, that is the softmax of their logarithm."""


class Gate(NamedTuple):
    """How a model's own router chooses: vLLM's settings of the layer."""

    scoring: str | None
    """One of SCORES; None where the model has a function of its own."""
    renormalises: bool
    groups: tuple[int, int] | None
    """How many groups of experts there are, and how many a token may use."""
    bias_E: Tensor | None
    scale: float

    @classmethod
    def of(cls, runner: MoERunner) -> "Gate":
        """The gate of a layer."""
        experts: Any = runner.routed_experts
        has_own = experts.custom_routing_function is not None or chooses_by_tokens(runner.router)
        is_known = not has_own and experts.scoring_func in SCORES
        is_grouped = experts.use_grouped_topk and experts.num_expert_group > 1
        groups = (experts.num_expert_group, experts.topk_group) if is_grouped else None
        return cls(
            experts.scoring_func if is_known else None,
            experts.renormalize,
            groups,
            experts.e_score_correction_bias,
            experts.routed_scaling_factor,
        )

    def __str__(self) -> str:
        if self.scoring is None:
            return "the model's own function"
        parts = [self.scoring]
        if self.bias_E is not None:
            parts.append("with a bias")
        if self.groups is not None:
            parts.append("in the best {1} of {0} groups".format(*self.groups))
        if self.renormalises:
            parts.append("renormalised")
        if self.scale != 1:
            parts.append(f"times {self.scale:g}")
        return ", ".join(parts)

    def confidence(self, logits_TE: Tensor) -> Confidence:
        """How sure the gate was of each token. Its scoring must be known."""
        assert self.scoring is not None
        logarithm, scores = SCORES[self.scoring]
        logits_TE = logits_TE.float()
        biased_TE = None if self.bias_E is None else scores(logits_TE) + self.bias_E
        return Confidence(logarithm(logits_TE), biased_TE)


class NativeLayer:
    """Stands beside the router of one MoE layer, and writes down what it decides."""

    observer: Observer | None = None

    def __init__(self, runner: MoERunner, step: RoutingStep, place: int) -> None:
        self.gate = Gate.of(runner)
        self._step, self._place = step, place

    def routed(self, hidden_TD: Tensor, logits_TE: Tensor, weights_TA: Tensor, experts_TA: Tensor) -> None:
        """What the router made of a step."""
        self._step.write(self._place, experts_TA, weights_TA, None, None, Confidence(logits_TE))
        if self.observer is not None:
            self.observer(hidden_TD, logits_TE, experts_TA, weights_TA)

    def chosen(self, experts_TA: Tensor) -> None:
        """The experts that a kernel chose which routes by itself."""
        self._step.write(self._place, experts_TA, None)


class NativeRouting(ModelRouting):
    """The MoE layers of a model that vLLM has loaded. Where they can't be seen it has none, and says why."""

    def __init__(self, vllm_config: VllmConfig, model: nn.Module, modalities: Sequence[str]) -> None:
        architecture = vllm_config.model_config.architecture
        runners = runners_of(model)
        refusal = why_unseen(architecture, runners, modalities)
        if refusal is not None:
            logger.warning(refusal)
            runners = []
        shapes = {runner.layer_id: _shape(runner) for runner in runners}
        max_tokens = vllm_config.scheduler_config.max_num_batched_tokens
        super().__init__(architecture, modalities, shapes, max_tokens)
        self.not_supported = [refusal] if refusal is not None else [ONLY_NATIVE]
        self.to(next(model.parameters()).device)
        if current_platform.is_cuda():
            self.step.write_by_kernel()
        self._top_k = {runner.layer_id: runner.routed_experts.top_k for runner in runners}
        self._gates: dict[int, Gate] = {}
        for place, runner in enumerate(runners):
            layer = NativeLayer(runner, self.step, place)
            self.routers[runner.layer_id] = layer
            self._gates[runner.layer_id] = layer.gate
            if routes_by_itself(runner):
                put_sink(runner, layer.chosen)
            else:
                assert isinstance(runner.router, BaseRouter)  # or it could not be seen
                watch_routing(runner.router, layer.routed)
        self.counter.as_scored = self._scored
        if runners:
            self._mark_steps_of(model)

    def _scored(self, written: ScoredTokens) -> ScoredTokens:
        """The layers write their logits as they are; probabilities and scores are made of them here."""
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

    def _mark_steps_of(self, model: Any) -> None:
        """Learn what a step's tokens are where they are embedded, whatever the model's class does there."""
        embed = model.embed_input_ids

        def mark_and_embed(
            input_ids: Tensor,
            multimodal_embeddings: Sequence[Tensor] | None = None,
            *,
            is_multimodal: Tensor | None = None,
            **options: Any,
        ) -> Tensor:
            # vLLM's runner writes its modality on each embedding: token ids don't tell videos from images.
            media = [Media(part.modality, len(part)) for part in multimodal_embeddings or ()]  # type: ignore[attr-defined]
            self.step.mark(is_multimodal, media, len(input_ids))
            embeds_TD: Tensor = embed(
                input_ids, multimodal_embeddings, is_multimodal=is_multimodal, **options
            )
            return embeds_TD

        model.embed_input_ids = mark_and_embed

    def source(self) -> str:
        return "model"

    def describe_layer(self, layer: int) -> Mapping[str, Any]:
        return {
            "top_k": self._top_k[layer],
            "gate": str(self._gates[layer]),
            "policy": NATIVE,
            "sources": {"policy": "model"},
        }


def why_unseen(architecture: str, runners: Sequence[MoERunner], modalities: Sequence[str]) -> str | None:
    """Why the routing of a model can't be counted; None where it can."""
    end = "It is served as vLLM serves it, and nothing of its routing is shown."
    layers = [runner.layer_id for runner in runners]
    if not runners:
        return f"{architecture} has no MoE layer that vLLM's MoERunner computes. {end}"
    if architecture in MISCOUNTED:
        return f"{MISCOUNTED[architecture]} {end}"
    if unknown := sorted({*modalities} - {*MODALITIES}):
        return f"prismoe doesn't know {architecture}'s modality {', '.join(unknown)}. {end}"
    if len({*layers}) < len(layers):
        return f"{architecture} has more than one set of experts in a decoder layer. {end}"
    for runner in runners:
        if runner.do_naive_dispatch_combine:
            return f"Here vLLM gathers the tokens of several ranks before it routes them. {end}"
        if runner.moe_config.is_sequence_parallel:
            return f"Here vLLM splits a step's tokens over the ranks before it routes them. {end}"
        if routes_by_itself(runner):
            if not has_sink(runner):
                return f"The routing of this kernel ({kernel_name(runner)}) can't be seen. {end}"
        elif not isinstance(runner.router, BaseRouter):
            return f"The routing of vLLM's {type(runner.router).__name__} can't be seen. {end}"
    return None


def _shape(runner: MoERunner) -> LayerShape:
    gate, experts = Gate.of(runner), runner.routed_experts
    num_experts: int = runner.moe_config.num_logical_experts
    is_scored = gate.scoring is not None and not routes_by_itself(runner)
    return LayerShape(
        num_experts,
        experts.top_k,
        scored=num_experts if is_scored else 0,
        has_scores=gate.bias_E is not None,
        uses_all_slots=True,
        tells_ties=is_scored and gate.groups is None,
    )
