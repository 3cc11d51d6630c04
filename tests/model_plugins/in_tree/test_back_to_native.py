"""An engine under policies is returned to `native` while requests run, and back to its policies."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vllm import LLM, RequestOutput, SamplingParams

from tests.model_plugins.engine import engine
from tests.model_plugins.in_tree.reference import Answer, answers
from tests.model_plugins.in_tree.test_counts import CHATS, GREEDY, MORE
from tests.model_plugins.in_tree.test_policies import GROUPS, HEADS, by_layer, load, rule_of
from tests.model_plugins.in_tree.tiny_model import BYTES

pytestmark = pytest.mark.engine

MODEL = "qwen3-vl-moe"
NARROW = {"policy": "topk", "top_k": 1}
ROUTING = by_layer(MODEL, HEADS, GROUPS, NARROW)
"""One layer has more slots than k, one as many, one fewer."""
RUNNING, STEPS = 16, 12
LONG = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True, allowed_token_ids=list(range(BYTES)))


def test_requests_run_on_and_later_ones_are_natives(checkpoint: Callable[[str], Path]) -> None:
    folder = checkpoint(MODEL)
    chats = [*CHATS[MODEL], *MORE]
    by_policy = answers(folder, chats, rule=rule_of(MODEL, ROUTING, {}))
    by_gate = answers(folder, chats)
    assert any(mine.token_ids != theirs.token_ids for mine, theirs in zip(by_policy, by_gate, strict=True))
    options: dict[str, Any] = {
        "enforce_eager": False,
        "max_num_batched_tokens": 64,  # some prompts are cut by the switch
        "max_num_seqs": RUNNING,
        "limit_mm_per_prompt": {"image": 4, "video": 1},
        "block_size": 32,
    }
    with engine(folder, ROUTING, **options) as llm:
        plain = [chat.for_vllm(folder) for chat in chats]
        prompts = salted(plain, "at the start")
        assert in_force(llm) == "policy"
        check(llm, prompts, by_policy)
        for choice, expected in (("native", by_gate), ("policy", by_policy)):
            before = told(llm)
            llm.enqueue([prompts[at % len(prompts)] for at in range(RUNNING)], LONG, use_tqdm=False)
            done = [output for _ in range(STEPS) for output in llm.llm_engine.step() if output.finished]
            assert not done
            assert llm.collective_rpc("prismoe_route_by", args=(choice,)) == [True]
            switched = told(llm)
            assert llm.collective_rpc("prismoe_route_by", args=(choice,)) == [False]
            assert in_force(llm) == choice
            outputs = llm.wait_for_completion(RequestOutput, use_tqdm=False)
            assert [len(output.outputs[0].token_ids) for output in outputs] == [LONG.max_tokens] * RUNNING
            lengths = [len(by_gate[at % len(prompts)].prompt_ids) for at in range(RUNNING)]
            cached = sum(output.num_cached_tokens or 0 for output in outputs)
            assert cached > 0  # so that a later prompt without a salt would find what they left
            check_sums(before, told(llm), sum(lengths) - cached + RUNNING * 29)
            # In the last layer a token uses one expert by the policy, two by the gate.
            old = 1 if choice == "native" else 2
            assert used(before, switched)[-1, :, old - 1].sum() > 0
            assert used(switched, told(llm))[-1].sum(axis=0).tolist().index(0) == old - 1
            prompts = salted(plain, choice)
            check(llm, prompts, expected)


def salted(prompts: Sequence[Any], salt: str) -> list[Any]:
    """As the server has them after a switch: with a salt of the prefix cache."""
    return [prompt | {"cache_salt": salt} for prompt in prompts]


def in_force(llm: LLM) -> str:
    """What `GET /v1/routing` would tell."""
    routing = llm.collective_rpc("prismoe_routing")[0]
    assert routing["switchable"] is True
    return str(routing["in_force"])


def told(llm: LLM) -> dict[str, Any]:
    """The whole load."""
    told: dict[str, Any] = llm.collective_rpc("prismoe_expert_load")[0]
    return told


def used(before: dict[str, Any], now: dict[str, Any]) -> np.ndarray:
    """`[layer, modality, number of experts]`: how many tokens used as many; here up to three."""
    layers = [
        [np.pad(row, (0, 3 - len(row))) for row in rows]
        for rows in (
            np.array(new) - np.array(old)
            for new, old in zip(now["tokens_by_experts"], before["tokens_by_experts"], strict=True)
        )
    ]
    return np.array(layers)


def check_sums(before: dict[str, Any], now: dict[str, Any], tokens: int) -> None:
    """Each layer has counted each token once, with the experts that it used."""
    by_experts = used(before, now)
    experts = (np.array(now["expert_tokens"]) - np.array(before["expert_tokens"])).sum(axis=2)
    np.testing.assert_array_equal(experts, by_experts @ np.arange(1, 4))
    assert by_experts.sum(axis=(1, 2)).tolist() == [tokens] * len(experts)


def check(llm: LLM, prompts: Sequence[Any], expected: Sequence[Answer]) -> None:
    """Tokens and each count are transformers'."""
    before = load(llm)
    outputs = llm.generate(prompts, GREEDY, use_tqdm=False)
    assert [[*output.outputs[0].token_ids] for output in outputs] == [one.token_ids for one in expected]
    np.testing.assert_array_equal(load(llm) - before, sum(one.counts for one in expected))
