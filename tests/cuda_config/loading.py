"""Loads weights on the CPU into the experts that vLLM has on a GPU, under a policy that skips."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from vllm.model_executor.custom_op import op_registry_oot
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner
from vllm.model_executor.model_loader import get_model_loader

from prismoe.model_plugins.moe_layer.experts.gpu_experts import use_in_all_models
from prismoe.model_plugins.moe_layer.model_routing import kernel_name, runners_of
from tests.cuda_config.engine import config_of, one_rank
from tests.cuda_config.tiny_models import IN_TREE
from tests.model_plugins.in_tree.checkpoints import make_checkpoint as make_in_tree
from tests.model_plugins.tiny_checkpoints import FAMILIES, make_checkpoint

EXPERTS_OF = {
    "phi": ("model.layers.{}.mlp.deepspeed_moe.experts.deepspeed_experts", ["fc1"], "fc2"),
    "stablelm": (
        "model.layers.{}.mlp.deepspeed_moe.experts.deepspeed_experts",
        ["gate_proj", "up_proj"],
        "down_proj",
    ),
    "qwen2": (
        "model.layers.{}.mlp.deepspeed_moe.experts.deepspeed_experts",
        ["gate_proj", "up_proj"],
        "down_proj",
    ),
    "qwen": ("transformer.h.{}.mlp.deepspeed_moe.experts.deepspeed_experts", ["w2", "w1"], "c_proj"),
    "glm4v-moe": ("model.language_model.layers.{}.mlp.experts", ["gate_proj", "up_proj"], "down_proj"),
}
"""The names of the weights in checkpoints: parts of the first product in vLLM's order, then the second."""


def kernels_with_weights(folder: Path) -> dict[str, str]:
    """The kernel of the first MoE layer by model. Raises AssertionError if a weight differs."""
    return {
        name: loaded(
            name,
            make_checkpoint(folder, name) if name in FAMILIES else make_in_tree(name, folder),
            {"policy": "ltdr", "head_experts": 1} if name in FAMILIES else {"policy": "dual_threshold"},
        )
        for name in (*FAMILIES, *IN_TREE)
    }


def loaded(name: str, checkpoint: Path, routing: dict[str, Any]) -> str:
    config = config_of(checkpoint, routing)
    config.load_config.device = "cpu"
    use_in_all_models()
    try:
        with one_rank(config, checkpoint):
            model = get_model_loader(config.load_config).load_model(config, config.model_config)
    finally:
        op_registry_oot.pop(RoutedExperts.__name__)
    weights = load_file(checkpoint / "model.safetensors")
    runners = runners_of(model)
    for runner in runners:
        check_weights(name, runner, weights)
    return kernel_name(runners[0])


def check_weights(name: str, runner: MoERunner, weights: dict[str, Tensor]) -> None:
    """Raise AssertionError if a layer's experts don't have the checkpoint's weights."""
    experts: Any = runner.routed_experts
    if name == "qwen3-vl-moe":
        prefix = f"model.language_model.layers.{runner.layer_id}.mlp.experts"
        first, second = weights[f"{prefix}.gate_up_proj"].mT, weights[f"{prefix}.down_proj"].mT
    else:
        path, inner, outer = EXPERTS_OF[name]
        prefix, count = path.format(runner.layer_id), len(experts.w13_weight)
        parts = [
            torch.stack([weights[f"{prefix}.{expert}.{part}.weight"] for expert in range(count)])
            for part in (*inner, outer)
        ]
        first, second = torch.cat(parts[:-1], dim=1), parts[-1]
    torch.testing.assert_close(experts.w13_weight, first.to(torch.bfloat16), rtol=0, atol=0)
    torch.testing.assert_close(experts.w2_weight, second.to(torch.bfloat16), rtol=0, atol=0)
