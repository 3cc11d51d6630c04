"""An engine under policies changes to `native` or other thresholds and back while requests run."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vllm import LLM, RequestOutput, SamplingParams

from tests.model_plugins.engine import engine
from tests.model_plugins.in_tree.reference import Answer, answers
from tests.model_plugins.in_tree.test_counts import CHATS, GREEDY, MORE
from tests.model_plugins.in_tree.test_policies import HEADS, STEER, by_layer, load, rule_of
from tests.model_plugins.in_tree.tiny_model import BYTES

pytestmark = pytest.mark.engine

MODEL = "qwen3-vl-moe"
NARROW = {"policy": "topk", "top_k": 1}
ASKED = [*CHATS[MODEL], *MORE]
ROUTING = by_layer(MODEL, HEADS, STEER, NARROW)
"""One layer has more slots than k, one has as many, and one has fewer."""
THRESHOLD = 0.0005
"""A threshold of the first layer, far below its own: more of its tokens are tail tokens."""
RUNNING, STEPS = 16, 12
LONG = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True, allowed_token_ids=list(range(BYTES)))


@pytest.fixture(scope="module")
def folder(checkpoint: Callable[[str], Path]) -> Path:
    return checkpoint(MODEL)


@pytest.fixture(scope="module")
def by_policy(folder: Path) -> list[Answer]:
    """Transformers' answers to ASKED under ROUTING."""
    return answers(folder, ASKED, rule=rule_of(MODEL, ROUTING, {}))


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    options: dict[str, Any] = {
        "enforce_eager": False,
        "max_num_batched_tokens": 64,  # the change splits some prompts
        "max_num_seqs": RUNNING,
        "limit_mm_per_prompt": {"image": 4, "video": 1},
        "block_size": 32,
    }
    with engine(folder, ROUTING, **options) as llm:
        yield llm


def test_running_requests_finish_and_later_ones_are_native(
    llm: LLM, folder: Path, by_policy: list[Answer]
) -> None:
    by_gate = answers(folder, ASKED)
    assert any(mine.token_ids != theirs.token_ids for mine, theirs in zip(by_policy, by_gate, strict=True))
    prompts = salted(folder, "at the start")
    assert in_force(llm) == "policy"
    check(llm, prompts, by_policy)
    for choice, expected in (("native", by_gate), ("policy", by_policy)):
        before, changed, after = change_while_requests_run(llm, prompts, "prismoe_route_by", choice)
        assert in_force(llm) == choice
        # In the last layer a token uses one expert under the policy and two under the gate.
        old = 1 if choice == "native" else 2
        assert used(before, changed)[-1, :, old].sum() > 0
        assert used(changed, after)[-1, :, old].sum() == 0
        prompts = salted(folder, choice)
        check(llm, prompts, expected)


def test_running_requests_finish_and_later_ones_use_the_new_threshold(
    llm: LLM, folder: Path, by_policy: list[Answer]
) -> None:
    first = str(min(int(layer) for layer in ROUTING["layers"]))
    layers = {**ROUTING["layers"], first: HEADS | {"threshold": THRESHOLD}}
    by_other = answers(folder, ASKED, rule=rule_of(MODEL, ROUTING | {"layers": layers}, {}))
    assert any(mine.token_ids != theirs.token_ids for mine, theirs in zip(by_policy, by_other, strict=True))
    prompts = salted(folder, "with its threshold")
    check(llm, prompts, by_policy)
    for threshold, expected in ((THRESHOLD, by_other), (HEADS["threshold"], by_policy)):
        asked = {int(first): {"threshold": threshold}}
        change_while_requests_run(llm, prompts, "prismoe_change_thresholds", asked)
        layer = llm.collective_rpc("prismoe_routing")[0]["layers"][0]
        assert layer["policy"]["threshold"] == threshold
        assert layer["sources"]["threshold"] == "/v1/routing/thresholds"
        prompts = salted(folder, f"with {threshold}")
        check(llm, prompts, expected)


def change_while_requests_run(
    llm: LLM, prompts: Sequence[Any], method: str, asked: Any
) -> list[dict[str, Any]]:
    """Change the routing by a call to the workers; return the load before it, at it, and at the end."""
    before = expert_load(llm)
    llm.enqueue([prompts[at % len(prompts)] for at in range(RUNNING)], LONG, use_tqdm=False)
    done = [output for _ in range(STEPS) for output in llm.llm_engine.step() if output.finished]
    assert not done
    assert llm.collective_rpc(method, args=(asked,)) == [True]
    changed = expert_load(llm)
    assert llm.collective_rpc(method, args=(asked,)) == [False]
    outputs = llm.wait_for_completion(RequestOutput, use_tqdm=False)
    assert [len(output.outputs[0].token_ids) for output in outputs] == [LONG.max_tokens] * RUNNING
    cached = sum(output.num_cached_tokens or 0 for output in outputs)
    assert cached > 0  # otherwise a later prompt without a salt would find their cached blocks
    lengths = sum(len(output.prompt_token_ids or ()) for output in outputs)
    check_sums(before, expert_load(llm), lengths - cached + RUNNING * 29)
    return [before, changed, expert_load(llm)]


def salted(folder: Path, salt: str) -> list[Any]:
    """ASKED with a salt of the prefix cache, as the server sets it after a change."""
    prompts: list[Any] = [chat.for_vllm(folder) for chat in ASKED]
    return [prompt | {"cache_salt": salt} for prompt in prompts]


def in_force(llm: LLM) -> str:
    """The routing that `GET /v1/routing` would report."""
    routing = llm.collective_rpc("prismoe_routing")[0]
    assert routing["switchable"] is True
    return str(routing["in_force"])


def expert_load(llm: LLM) -> dict[str, Any]:
    """The engine's complete expert load."""
    load: dict[str, Any] = llm.collective_rpc("prismoe_expert_load")[0]
    return load


def used(before: dict[str, Any], now: dict[str, Any]) -> np.ndarray:
    """The number of tokens by `[layer, modality, number of experts]`, from none to three experts."""
    layers = [
        [np.pad(row, (0, 4 - len(row))) for row in rows]
        for rows in (
            np.array(new) - np.array(old)
            for new, old in zip(now["tokens_by_experts"], before["tokens_by_experts"], strict=True)
        )
    ]
    return np.array(layers)


def check_sums(before: dict[str, Any], now: dict[str, Any], tokens: int) -> None:
    """Check that each layer has counted each token once, with the experts that it used."""
    by_experts = used(before, now)
    experts = (np.array(now["expert_tokens"]) - np.array(before["expert_tokens"])).sum(axis=2)
    np.testing.assert_array_equal(experts, by_experts @ np.arange(4))
    assert by_experts.sum(axis=(1, 2)).tolist() == [tokens] * len(experts)


def check(llm: LLM, prompts: Sequence[Any], expected: Sequence[Answer]) -> None:
    """Check that the tokens and all counts are transformers'."""
    before = load(llm)
    outputs = llm.generate(prompts, GREEDY, use_tqdm=False)
    assert [[*output.outputs[0].token_ids] for output in outputs] == [one.token_ids for one in expected]
    np.testing.assert_array_equal(load(llm) - before, sum(one.counts for one in expected))
