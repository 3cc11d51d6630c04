"""The basis of policies and counters in a model that vLLM has built: gates, steps, and refusals.

Everything is attached to the instances of the loaded model; its code stays unchanged.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from vllm.logger import init_logger
from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter
from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner

from prismoe.kernels.modalities import MODALITIES
from prismoe.model_plugins.moe_layer.attached.media_places import media_places, placeholders_of
from prismoe.model_plugins.moe_layer.model_routing import kernel_name, runners_of
from prismoe.model_plugins.moe_layer.step import Media, RoutingStep
from prismoe.model_plugins.routing.gate import SCORES, Gate
from prismoe.model_plugins.vllm_seams.engine.experts_sink import has_sink, routes_by_itself
from prismoe.model_plugins.vllm_seams.engine.language_model import embed_text_as_before
from prismoe.model_plugins.vllm_seams.engine.native_router import chooses_by_tokens, scale_of_experts
from prismoe.model_plugins.vllm_seams.engine.vision_chunks import medium_of

NOT_SHOWN = "It is served as vLLM serves it, and nothing of its routing is shown."
SPLIT = frozenset({"Ernie4_5_VLMoeForConditionalGeneration"})
"""Models whose layers have text experts and vision experts, by their names in vLLM's registry."""

logger = init_logger("vllm.prismoe.native")


def gate_of(runner: MoERunner) -> Gate:
    """The gate of a layer, as vLLM's settings describe it."""
    experts: Any = runner.routed_experts
    expert_scale_E = scale_of_experts(experts.custom_routing_function)
    has_own = experts.custom_routing_function is not None or chooses_by_tokens(runner.router)
    scoring = experts.scoring_func if experts.scoring_func in SCORES and not has_own else None
    is_grouped = experts.use_grouped_topk and experts.num_expert_group > 1
    return Gate(
        "softmax" if expert_scale_E is not None else scoring,
        experts.renormalize,
        (experts.num_expert_group, experts.topk_group) if is_grouped else None,
        experts.e_score_correction_bias,
        experts.routed_scaling_factor,
        expert_scale_E,
    )


def mark_steps_of(architecture: str, model: Any, step: RoutingStep) -> None:
    """Record what a step's tokens are when they are embedded, for any class of model."""
    embed, placeholders = model.embed_input_ids, placeholders_of(architecture, model)

    def mark_and_embed(
        input_ids: Tensor,
        multimodal_embeddings: Sequence[Tensor] | None = None,
        *,
        is_multimodal: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        # vLLM's runner sets the modality of each embedding: token ids don't distinguish videos from images.
        media = [Media(medium_of(part.modality), len(part)) for part in multimodal_embeddings or ()]  # type: ignore[attr-defined]
        places = None
        if placeholders and media and is_multimodal is not None:
            places = media_places(input_ids, is_multimodal, media, placeholders)
        step.tokens.mark(is_multimodal, media, len(input_ids), places)
        embeds_TD: Tensor = embed(input_ids, multimodal_embeddings, is_multimodal=is_multimodal, **options)
        return embeds_TD

    embed_text_as_before(model)
    model.embed_input_ids = mark_and_embed


def seen_runners(
    architecture: str, model: nn.Module, modalities: Sequence[str], found_wrong: str | None = None
) -> tuple[list[MoERunner], list[str]]:
    """The MoE layers of a model if their routing can be counted, else none and the reason, which is logged.

    `found_wrong` is the fault that the self-check at the start found, if any.
    """
    runners = runners_of(model)
    refusal = found_wrong or why_unseen(architecture, runners, modalities)
    if refusal is None:
        return runners, []
    logger.warning(refusal)
    return [], [refusal]


def why_native_alone(architecture: str) -> str | None:
    """The reason why no policy can route or shadow a model; None where policies can."""
    if architecture not in SPLIT:
        return None
    return (
        f"{architecture} has experts for text and experts for vision, and no policy supports "
        "that: it can only route by native. Leave the routing policy and the shadow out."
    )


def why_unseen(architecture: str, runners: Sequence[MoERunner], modalities: Sequence[str]) -> str | None:
    """The reason why the routing of a model can't be counted; None where it can."""
    layers = [runner.layer_id for runner in runners]
    if not runners:
        return f"{architecture} has no MoE layer that vLLM's MoERunner computes. {NOT_SHOWN}"
    if unknown := sorted({*modalities} - {*MODALITIES}):
        return f"prismoe doesn't know {architecture}'s modality {', '.join(unknown)}. {NOT_SHOWN}"
    if len({*layers}) < len(layers) and architecture not in SPLIT:
        return f"{architecture} has more than one set of experts in a decoder layer. {NOT_SHOWN}"
    for runner in runners:
        if runner.do_naive_dispatch_combine:
            return f"Here vLLM gathers the tokens of several ranks before it routes them. {NOT_SHOWN}"
        if runner.moe_config.is_sequence_parallel:
            return f"Here vLLM splits a step's tokens over the ranks before it routes them. {NOT_SHOWN}"
        if routes_by_itself(runner):
            if not has_sink(runner):
                return f"The routing of this kernel ({kernel_name(runner)}) can't be seen. {NOT_SHOWN}"
            if runner.moe_config.dp_size > 1:  # vLLM gathers tokens before it, so its sink has all of them
                return (
                    f"This kernel ({kernel_name(runner)}) routes the tokens of several data-parallel engines "
                    f"together: choose another with --moe-backend. {NOT_SHOWN}"
                )
        elif not isinstance(runner.router, BaseRouter):
            return f"The routing of vLLM's {type(runner.router).__name__} can't be seen. {NOT_SHOWN}"
    return None
