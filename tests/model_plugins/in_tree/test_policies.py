"""Policies in vLLM's own models: tokens and counts are transformers' under the same rule."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from vllm import LLM

from prismoe.model_plugins.routing.registry import choose_routing
from tests.model_plugins.engine import engine, rank_cores
from tests.model_plugins.in_tree.chats import PICTURE_AND_VIDEO, TEXT, TWO_PICTURES
from tests.model_plugins.in_tree.reference import Rule, answers
from tests.model_plugins.in_tree.test_counts import CHATS, GREEDY
from tests.model_plugins.routing.gate_reference import RULES, GateRule
from tests.runners import Runner

pytestmark = pytest.mark.engine

SKIP = {"policy": "dual_threshold", "vision_threshold": 0.45, "text_threshold": 0.1}
NONE = {"policy": "dual_threshold", "vision_threshold": 0.6, "text_threshold": 0.52, "keep_best": False}
HEADS = {"policy": "ltdr", "threshold": 0.02, "head_experts": 1, "text_experts": 2, "tail_experts": 3}
ENTROPY = {"policy": "entropy", "max_experts": 3, "low": 0.3, "high": 0.9}
GROUPS = {"policy": "modality_groups", "vision_experts": 1, "text_experts": 2}
EQUIROUTE = {"policy": "equiroute"}
STEER = {
    "policy": "steer",
    "all": {"shift": {"2": 1.0}},
    "text": {"on": [3]},
    "vision": {"on": [5], "off": [0, 1]},
}
MODELS = {
    "qwen3-vl-moe": ((0, 1, 2), 2, True),
    "glm4v-moe": ((1, 2), 3, True),
    "gemma4-moe": ((0, 1, 2), 2, True),
}
"""The MoE layers, k, and whether the gate renormalises."""


def by_layer(name: str, *policies: dict[str, Any]) -> dict[str, Any]:
    """Settings with a different policy for each layer."""
    layers, _, _ = MODELS[name]
    return {
        **policies[0],
        "layers": {str(layer): policy for layer, policy in zip(layers, policies, strict=False)},
    }


OFTEN: list[tuple[str, str, dict[str, Any], Runner, dict[str, Any]]] = [
    ("qwen3-vl-moe", "skip", SKIP, "v2", {"max_num_batched_tokens": 16, "max_num_seqs": 8}),
    ("qwen3-vl-moe", "three", by_layer("qwen3-vl-moe", HEADS, ENTROPY, GROUPS), "v1", {}),
    ("qwen3-vl-moe", "none kept", NONE, "v2", {}),
    ("glm4v-moe", "skip compiled", SKIP, "v1", {"enforce_eager": False}),
    ("glm4v-moe", "two", by_layer("glm4v-moe", EQUIROUTE, HEADS), "v1", {}),
    ("gemma4-moe", "three", by_layer("gemma4-moe", SKIP, HEADS, EQUIROUTE), "v1", {}),
]
REST: list[tuple[str, str, dict[str, Any], Runner, dict[str, Any]]] = [
    ("qwen3-vl-moe", "skip on two ranks", SKIP, "v1", {"tensor_parallel_size": 2}),
    ("qwen3-vl-moe", "equiroute compiled", EQUIROUTE, "v1", {"enforce_eager": False}),
    ("glm4v-moe", "none kept beside shared experts", NONE, "v1", {}),
    ("glm4v-moe", "none kept, compiled", NONE, "v1", {"enforce_eager": False}),
    ("glm4v-moe", "other two", by_layer("glm4v-moe", GROUPS, ENTROPY), "v2", {}),
    ("gemma4-moe", "other three", by_layer("gemma4-moe", GROUPS, ENTROPY, SKIP), "v2", {}),
]
STARTED = OFTEN + (REST if os.environ.get("PRISMOE_EVERYWHERE") == "1" else [])


def trained(folder: Path, name: str) -> str:
    """Write a file of EquiRoute's parameters."""
    generator = torch.Generator().manual_seed(3)
    layers, _, _ = MODELS[name]
    tensors: dict[str, Tensor] = {}
    for layer in layers:
        tensors[f"layers.{layer}.pressure"] = 0.5 + torch.rand(2, 1, generator=generator)
        tensors[f"layers.{layer}.reservation"] = torch.randn(2, 8, generator=generator)
    save_file(tensors, folder / "trained.safetensors")
    return str(folder / "trained.safetensors")


def rule_of(name: str, routing: dict[str, Any], tensors: dict[str, Tensor]) -> Rule:
    """The rule for each of transformers' routers that corresponds to the operator's setting."""
    layers, top_k, renormalises = MODELS[name]
    settings = {key: value for key, value in routing.items() if key != "parameters"}
    in_force = choose_routing(settings, None, top_k, dict.fromkeys(layers, 8), renormalises)

    def rule(place: int, router: Any, logits: np.ndarray, is_vision: bool) -> list[tuple[int, float]]:
        layer = layers[place]
        policy = in_force.layers[layer].policy
        own = {key: tensors[f"layers.{layer}.{key}"].double().numpy() for key in policy.parameters(0, 8)}
        return RULES[policy.policy](policy, gate_rule(name, router), logits, is_vision, own)

    return rule


def gate_rule(name: str, router: Any) -> GateRule:
    """The gate's rule from transformers' code of each model."""
    if name == "glm4v-moe":
        return GateRule(
            "sigmoid",
            groups=(router.num_group, router.topk_group),
            bias=router.e_score_correction_bias.double().numpy(),
            scale=router.routed_scaling_factor,
        )
    if name == "gemma4-moe":
        return GateRule(expert_scale=router.per_expert_scale.detach().double().numpy())
    return GateRule()


@pytest.mark.parametrize(
    ("name", "routing", "runner", "options"),
    [(name, *rest) for name, _, *rest in STARTED],
    ids=[f"{name}-{what}" for name, what, *_ in STARTED],
)
def test_tokens_and_counts_are_transformers_under_the_same_rule(
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
    name: str,
    routing: dict[str, Any],
    runner: Runner,
    options: dict[str, Any],
) -> None:
    folder, file = checkpoint(name), trained(tmp_path, name)
    if "equiroute" in str(routing):
        routing = {**routing, "parameters": file}
    expected = answers(folder, CHATS[name], rule=rule_of(name, routing, load_file(file)))
    native = answers(folder, CHATS[name])
    assert any(
        not np.array_equal(mine.counts, theirs.counts) for mine, theirs in zip(expected, native, strict=True)
    )
    if routing is NONE:  # text, images and videos all have tokens that lose all experts
        assert np.sum([one.tokens_without_experts for one in expected], axis=(0, 1)).all()
    with (
        rank_cores(options.get("tensor_parallel_size", 1)),
        engine(
            folder,
            routing,
            runner=runner,
            limit_mm_per_prompt={"image": 4, "video": 1},
            enable_prefix_caching=False,
            **options,
        ) as llm,
    ):
        prompts = [chat.for_vllm(folder) for chat in CHATS[name]]
        for chosen in ([0], [1], range(len(prompts))):
            before, without = load(llm), tokens_without_experts(llm)
            outputs = llm.generate([prompts[at] for at in chosen], GREEDY, use_tqdm=False)
            for output, at in zip(outputs, chosen, strict=True):
                assert list(output.outputs[0].token_ids) == expected[at].token_ids
            np.testing.assert_array_equal(load(llm) - before, sum(expected[at].counts for at in chosen))
            np.testing.assert_array_equal(
                tokens_without_experts(llm) - without,
                sum(expected[at].tokens_without_experts for at in chosen),
            )


def load(llm: LLM) -> np.ndarray:
    """The load as `[layer, modality, expert]`."""
    return np.array(llm.collective_rpc("prismoe_expert_load")[0]["expert_tokens"])


def tokens_without_experts(llm: LLM) -> np.ndarray:
    """The tokens without experts as `[layer, modality]`."""
    return np.array(
        [
            [row[0] for row in rows]
            for rows in llm.collective_rpc("prismoe_expert_load")[0]["tokens_by_experts"]
        ]
    )


def test_qwen3_5_in_bfloat16(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """The rule is applied to the recorded logits, and compared with the experts that the layers used."""
    folder, file = checkpoint("qwen3.5-moe"), tmp_path / "recorded.npz"
    policies = [SKIP | {"vision_threshold": 0.3}, HEADS, ENTROPY, GROUPS]
    routing = {**policies[0], "layers": {str(layer): one for layer, one in enumerate(policies)}}
    in_force = choose_routing(routing, None, 3, dict.fromkeys(range(4), 8), True)
    with engine(folder, routing, dtype="bfloat16", limit_mm_per_prompt={"image": 4, "video": 1}) as llm:
        llm.collective_rpc("prismoe_start_recording")
        for chat, answer in zip(
            (TEXT, TWO_PICTURES, PICTURE_AND_VIDEO),
            answers(folder, (TEXT, TWO_PICTURES, PICTURE_AND_VIDEO)),
            strict=True,
        ):
            llm.generate([chat.for_vllm(folder)], GREEDY, use_tqdm=False)
            llm.collective_rpc("prismoe_save_recording", args=(str(file),))
            recorded = np.load(file)
            for layer in range(4):
                policy = in_force.layers[layer].policy
                for token, is_vision in enumerate(answer.modality_T > 0):
                    logits = recorded[f"layer{layer}_router_logits"][token].astype(np.float64)
                    pairs = RULES[policy.policy](policy, GateRule(), logits, bool(is_vision), {})
                    used = recorded[f"layer{layer}_topk_weights"][token] != 0
                    assert sorted(recorded[f"layer{layer}_topk_ids"][token][used]) == sorted(
                        expert for expert, _ in pairs
                    )
