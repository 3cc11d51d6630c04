"""A shadow policy counts the experts that it would use, and does not change the model's `native` routing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from vllm import LLM, SamplingParams

from prismoe.model_plugins.routing.registry import choose_routing
from prismoe.model_plugins.worker.engine_options import engine_options
from tests.model_plugins.engine import engine
from tests.model_plugins.in_tree.reference import Answer, answers
from tests.model_plugins.in_tree.test_counts import CHATS, GREEDY
from tests.model_plugins.in_tree.test_policies import HEADS, MODELS, SKIP, by_layer
from tests.model_plugins.routing.gate_reference import RULES, GateRule

pytestmark = pytest.mark.engine

NAME = "qwen3-vl-moe"
LAYERS, TOP_K, RENORMALISES = MODELS[NAME]
SHADOW = by_layer(NAME, SKIP, HEADS)
IN_FORCE = choose_routing(SHADOW, None, TOP_K, dict.fromkeys(LAYERS, 8), RENORMALISES)
PROMPT_ALONE = SamplingParams(temperature=0, max_tokens=1)
LIMITS = {"image": 4, "video": 1}


class Shadowed(NamedTuple):
    """The counts of an engine with a shadow, and transformers' results for the same chats."""

    load: dict[str, Any]
    native: list[Answer]
    by_rule: np.ndarray
    """The uses by the rule for the recorded logits, `[layer, modality, expert]`."""
    tails: list[int]
    prompts_first: list[list[int]]
    """The uses in the first layer by the prompts alone, `[modality, expert]`."""


def load(llm: LLM) -> dict[str, Any]:
    expert_load: dict[str, Any] = llm.collective_rpc("prismoe_expert_load")[0]
    return expert_load


def ask(llm: LLM, folder: Path, params: SamplingParams) -> list[list[int]]:
    """The tokens of each chat's answer, one chat after the other."""
    return [
        list(llm.generate([chat.for_vllm(folder)], params, use_tqdm=False)[0].outputs[0].token_ids)
        for chat in CHATS[NAME]
    ]


def counted(answered: list[Answer]) -> list[list[list[int]]]:
    counts: list[list[list[int]]] = np.sum([answer.counts for answer in answered], axis=0).tolist()
    return counts


@pytest.fixture(scope="module")
def shadowed(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Shadowed:
    """An eager engine whose steps split images."""
    folder, file = checkpoint(NAME), tmp_path_factory.mktemp("recorded") / "recorded.npz"
    native = answers(folder, CHATS[NAME])
    steps: dict[str, Any] = {"max_num_batched_tokens": 16, "max_num_seqs": 8, "enable_prefix_caching": False}
    options = engine_options(shadow=SHADOW) | steps
    with engine(folder, runner="v2", limit_mm_per_prompt=LIMITS, **options) as llm:
        llm.collective_rpc("prismoe_start_recording")
        assert ask(llm, folder, GREEDY) == [answer.token_ids for answer in native]
        llm.collective_rpc("prismoe_save_recording", args=(str(file),))
        counts = load(llm)
        assert [
            layer["policy"]["policy"] for layer in llm.collective_rpc("prismoe_routing")[0]["shadow"]
        ] == [
            "dual_threshold",
            "ltdr",
            "dual_threshold",
        ]
        llm.collective_rpc("prismoe_reset_expert_load")
        llm.collective_rpc("prismoe_step")  # a dummy step
        assert not np.any(load(llm)["shadow"]["expert_tokens"])
        ask(llm, folder, PROMPT_ALONE)
        prompts_first = load(llm)["shadow"]["expert_tokens"][0]
    return Shadowed(counts, native, *by_rule(np.load(file), native), prompts_first)


def by_rule(recorded: Any, native: list[Answer]) -> tuple[np.ndarray, list[int]]:
    """The policies' uses for the recorded logits in float64, and the number of tail tokens in each layer."""
    modality_T = np.concatenate([answer.modality_T for answer in native])
    counts, tails = np.zeros((len(LAYERS), 3, 8), dtype=np.int64), [0] * len(LAYERS)
    for place, layer in enumerate(LAYERS):
        policy: Any = IN_FORCE.layers[layer].policy
        logits_TE = recorded[f"layer{layer}_router_logits"].astype(np.float64)
        for logits_E, modality in zip(logits_TE, modality_T, strict=True):
            pairs = RULES[policy.policy](policy, GateRule(), logits_E, modality > 0, {})
            counts[place, modality, [expert for expert, _ in pairs]] += 1
            tails[place] += policy.policy == "ltdr" and len(pairs) == policy.tail_experts
    return counts, tails


def test_the_shadow_does_not_change_native(shadowed: Shadowed) -> None:
    assert shadowed.load["expert_tokens"] == counted(shadowed.native)
    assert shadowed.load["tail_tokens"] == [0] * len(LAYERS)


def test_the_shadow_counts_the_rules_uses_for_the_models_logits(shadowed: Shadowed) -> None:
    shadow = shadowed.load["shadow"]
    assert shadow["expert_tokens"] == shadowed.by_rule.tolist()
    assert shadow["tail_tokens"] == shadowed.tails and shadowed.tails[1] > 0
    assert shadow["tokens"] == shadowed.load["tokens"]
    assert (shadow["modalities"], shadow["layers"]) == (shadowed.load["modalities"], [*LAYERS])
    for of_shadow, of_native in zip(shadowed.by_rule, shadowed.load["expert_tokens"], strict=True):
        assert not np.array_equal(of_shadow, of_native)


def test_the_first_layer_has_the_same_uses_once_the_policy_is_in_force(
    shadowed: Shadowed, checkpoint: Callable[[str], Path]
) -> None:
    """Later layers have other hidden states then."""
    folder = checkpoint(NAME)
    with engine(folder, SHADOW, limit_mm_per_prompt=LIMITS, enable_prefix_caching=False) as llm:
        ask(llm, folder, PROMPT_ALONE)
        used = load(llm)["expert_tokens"]
    assert used[0] == shadowed.prompts_first


def test_a_compiled_engine_counts_the_same(shadowed: Shadowed, checkpoint: Callable[[str], Path]) -> None:
    folder, options = checkpoint(NAME), engine_options(shadow=SHADOW) | {"enforce_eager": False}
    with engine(folder, limit_mm_per_prompt=LIMITS, enable_prefix_caching=False, **options) as llm:
        assert ask(llm, folder, GREEDY) == [answer.token_ids for answer in shadowed.native]
        counts = load(llm)
    for name in ("tokens", "expert_tokens", "tail_tokens"):
        assert (counts[name], counts["shadow"][name]) == (shadowed.load[name], shadowed.load["shadow"][name])
