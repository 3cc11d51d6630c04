"""Follows how ERNIE-4.5-VL splits a step's tokens between a layer's text experts and vision experts."""

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor, nn
from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner

from prismoe.model_plugins.vllm_seams.check import Needed

Kind = Literal["text", "vision"]
NAMES: dict[str, Kind] = {"text_experts": "text", "vision_experts": "vision"}

NEEDS = [
    Needed(
        "vllm.model_executor.models.ernie45_vl_moe:Ernie4_5_VLMoeMoE.forward",
        ("hidden_states", "visual_token_mask"),
        attributes=(*NAMES,),
    ),
    Needed(
        "vllm.model_executor.models.ernie45_vl_moe:Ernie4_5_VLMoeModel.forward",
        ("input_ids", "positions", "intermediate_tensors", "inputs_embeds", "visual_token_mask"),
    ),
    Needed(
        "vllm.model_executor.models.ernie45_vl:Ernie4_5_VLMoeForConditionalGeneration.forward",
        attributes=("visual_token_mask", "language_model", "model"),
    ),
]


def kind_of(runner: MoERunner) -> Kind:
    """The kind of experts that a runner of such a model holds."""
    return NAMES[runner.layer_name.rpartition(".")[2]]


def part_next_step(model: Any, is_vision_T1: Tensor) -> None:
    """Set the kinds of the next step's tokens. In a step with media the model sets them itself."""
    model.visual_token_mask = is_vision_T1.to(next(model.parameters()).device)


def watch_kinds(model: Any, report: Callable[[Tensor | None], None]) -> None:
    """Call `report` before each step with the model's `is_vision_T1`; None where all tokens are text."""

    def begin_step(_: nn.Module, __: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        report(inputs.get("visual_token_mask"))

    model.language_model.model.register_forward_pre_hook(begin_step, with_kwargs=True)
