"""Finds the vLLM kernels that experts get, and whether prismoe can observe and route them."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from vllm.model_executor.custom_op import op_registry_oot
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner

from prismoe.model_plugins.moe_layer.attached import checked_policies
from prismoe.model_plugins.moe_layer.attached.attach import gate_of, why_unseen
from prismoe.model_plugins.moe_layer.experts.gpu_experts import use_in_all_models
from prismoe.model_plugins.moe_layer.experts.unused_slots import check_unused_slots
from prismoe.model_plugins.moe_layer.model_routing import kernel_name, runners_of
from prismoe.model_plugins.routing.registry import choose_routing
from prismoe.model_plugins.vllm_seams.engine.experts_sink import has_sink, routes_by_itself
from tests.cuda_config.engine import built, config_of
from tests.cuda_config.tiny_models import IN_TREE, QUANTISATIONS, settings_of
from tests.model_plugins.routing.routing_steps import CASES, make
from tests.model_plugins.tiny_checkpoints import FAMILIES, MOE, make_checkpoint

MOE_LLAVA_QUANTISATIONS = (None, "fp8")
"""Quantisations that vLLM does while it loads weights: the families' checkpoints have no others."""
MOE_LLAVA_SIZES: dict[str, Any] = {"hidden_size": 128, "num_attention_heads": 8, "num_key_value_heads": 8}
BY_USE = {"all slots": {"policy": "topk"}, "unused slots": {"policy": "dual_threshold"}}
"""Policies for vLLM's own models, by the slots that they use."""
CHOICES = ("auto", "triton", "marlin")
"""Values of --moe-backend."""


def kernels_of_moe_llava(folder: Path) -> dict[str, Any]:
    """The kernel by family, quantisation and whether a policy uses all slots.

    All such policies get the same.
    """
    layers = len(CASES)
    moe = {"moe_layers_idx": [*range(layers)], "num_experts": [6] * layers, "expert_width": 128}
    routing = {"policy": "topk", "layers": dict(zip(map(str, range(layers)), CASES.values(), strict=True))}
    found: dict[str, Any] = {}
    for family in FAMILIES:
        checkpoint = make_checkpoint(
            folder,
            family,
            moe=MOE | moe,
            dtype=torch.bfloat16,
            num_hidden_layers=layers,
            prismoe_routing=routing,
            **MOE_LLAVA_SIZES,
        )
        for quantisation in MOE_LLAVA_QUANTISATIONS:
            by_use: dict[str, set[str]] = {"all slots": set(), "unused slots": set()}
            for runner, settings in zip(
                built_runners(checkpoint, None, quantization=quantisation), CASES.values(), strict=True
            ):
                uses_all = make(settings).uses_all_slots
                kernel = kernel_or_refusal(runner, settings["policy"], uses_all)
                by_use["all slots" if uses_all else "unused slots"].add(kernel)
            found.setdefault(family, {})[quantisation or "none"] = {
                use: ", ".join(sorted(kernels)) for use, kernels in by_use.items()
            }
    return found


def kernel_or_refusal(runner: MoERunner, policy: str, uses_all: bool) -> str:
    """A kernel's name, in brackets if prismoe refuses it."""
    try:
        if not uses_all:
            check_unused_slots(runner, policy)
    except ValueError:
        return f"({kernel_name(runner)})"
    return kernel_name(runner)


def kernels_of_in_tree(folder: Path) -> dict[str, Any]:
    """The kernels by model and quantisation: under `native`, its observation, and under policies."""
    found: dict[str, Any] = {}
    for name in IN_TREE:
        for quantisation in QUANTISATIONS:
            checkpoint = settings_of(name, quantisation, folder)
            policies = {
                use: {choice: routed(checkpoint, settings, choice) for choice in CHOICES}
                for use, settings in BY_USE.items()
            }
            found.setdefault(name, {})[quantisation] = {
                "native": seen(built_runners(checkpoint, None)[0]),
                **policies,
            }
    return found


def seen(runner: MoERunner) -> dict[str, Any]:
    """prismoe's description of a layer that vLLM routes."""
    by_itself = routes_by_itself(runner)
    return {
        "kernel": kernel_name(runner),
        "routes by itself": by_itself,
        "has a sink": by_itself and has_sink(runner),
        "seen": why_unseen("Model", [runner], ["text"]) is None,
    }


def routed(checkpoint: Path, settings: Mapping[str, Any], moe_backend: str) -> str:
    """The kernel under a policy: in brackets if prismoe refuses it, "-" if vLLM has none."""
    use_in_all_models()
    try:
        runner = built_runners(checkpoint, settings, moe_backend=moe_backend)[0]
    except (NotImplementedError, ValueError):
        return "-"
    finally:
        op_registry_oot.pop(RoutedExperts.__name__)
    gate, top_k = gate_of(runner), runner.routed_experts.top_k
    experts = {runner.layer_id: runner.moe_config.num_logical_experts}
    routing = choose_routing(settings, None, top_k, experts, gate.renormalises).layers[runner.layer_id]
    try:
        checked_policies.check_layer(runner, gate, routing)
    except ValueError:
        return f"({kernel_name(runner)})"
    return kernel_name(runner)


def built_runners(checkpoint: Path, routing: Mapping[str, Any] | None, **options: Any) -> list[MoERunner]:
    """A model's MoE layers, each with a kernel object of the class that it will have with weights."""
    runners = runners_of(built(config_of(checkpoint, routing, **options), checkpoint))
    for runner in runners:
        method: Any = runner.routed_experts.quant_method
        experts: Any = object.__new__(method.experts_cls)
        experts.moe_config = runner.moe_config
        method.moe_kernel = SimpleNamespace(
            fused_experts=experts,
            impl=SimpleNamespace(fused_experts=experts),
            is_monolithic=method.experts_cls.is_monolithic(),
        )
    return runners


# A GPU's kernels route the tokens of this check themselves.
checked_policies.follows = lambda runner, gate: True
