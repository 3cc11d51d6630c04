"""Reading and showing the expert load, without an engine."""

import asyncio
import re
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client import CollectorRegistry, Counter
from pydantic import ValidationError

from prismoe.server.commands.demo import load_report
from prismoe.server.commands.load_table import load_table, tail_sentence
from prismoe.server.metrics.expert_load import ExpertLoad
from prismoe.server.metrics.load_reader import ExpertLoadReader
from prismoe.server.metrics.page import vllm_tokens
from prismoe.server.metrics.routes import ServedRouting, router, routing_in_force
from tests.server.fake_engine import LOAD, NOTHING, UNSEEN, UNSEEN_WHY, FakeEngine, large_load, routing


def test_a_load_with_a_wrong_shape_is_refused() -> None:
    with pytest.raises(ValidationError):
        asyncio.run(ExpertLoadReader(FakeEngine({**LOAD, "more": 1}, LOAD)).read())


def test_polling_survives_a_failure_and_ends_with_the_engine() -> None:
    more = {**LOAD, "tail_tokens": [17, 1]}
    engine = FakeEngine(LOAD, RuntimeError("no answer"), more)
    reader = ExpertLoadReader(engine)
    asyncio.run(asyncio.wait_for(reader.poll(0.001), timeout=10))
    assert engine.asked == 3
    assert reader.failures == 1
    assert reader.latest == ExpertLoad.model_validate(more)


def test_an_idle_engine_is_not_read() -> None:
    work = iter([1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 3.0, 3.0])
    engine = FakeEngine(LOAD, LOAD, LOAD)
    reader = ExpertLoadReader(engine, lambda: next(work))

    async def read_and_poll() -> None:
        await reader.read()  # at 1
        await asyncio.wait_for(reader.poll(0.001), timeout=10)

    asyncio.run(read_and_poll())
    assert engine.asked == 3
    assert list(work) == []


def test_work_during_a_reading_is_read_next() -> None:
    class Busy(FakeEngine):
        async def ask(self, method: str, *args: Any) -> list[Any]:
            load = await super().ask(method, *args)
            done[0] = 2.0
            return load

    done, engine = [1.0], Busy(LOAD, LOAD)
    reader = ExpertLoadReader(engine, lambda: done[0])
    asyncio.run(asyncio.wait_for(reader.poll(0.001), timeout=10))
    assert engine.asked == 2


def test_simultaneous_readers_share_one_call_of_the_engine() -> None:
    async def crowd() -> list[ExpertLoad]:
        return await asyncio.gather(*[reader.read() for _ in range(20)])

    engine = FakeEngine(LOAD, LOAD)
    reader = ExpertLoadReader(engine)
    assert asyncio.run(crowd()) == [ExpertLoad.model_validate(LOAD)] * 20
    assert engine.asked == 1


def test_clients_get_a_reading_that_is_at_most_half_a_second_old() -> None:
    now = 0.0
    more = {**LOAD, "tail_tokens": [17, 1]}
    engine = FakeEngine(LOAD, more, NOTHING)
    reader = ExpertLoadReader(engine, clock=lambda: now)

    async def tail_tokens_at(second: float) -> list[int]:
        nonlocal now
        now = second
        return (await reader.recent()).tail_tokens

    async def ask() -> list[list[int]]:
        return [await tail_tokens_at(second) for second in (0.0, 0.1, 0.49, 0.5, 0.9, 1.1)]

    assert asyncio.run(ask()) == [[16, 0]] * 3 + [[17, 1]] * 2 + [[0, 0]]
    assert engine.asked == 3


def test_vllms_counters_show_whether_work_was_done() -> None:
    registry = CollectorRegistry()
    assert vllm_tokens(registry) is None
    prompt = Counter("vllm:prompt_tokens", "", ["engine"], registry=registry)
    generated = Counter("vllm:generation_tokens", "", ["engine"], registry=registry)
    Counter("vllm:other", "", registry=registry).inc()
    prompt.labels("0").inc(40)
    prompt.labels("1").inc(2)
    generated.labels("0").inc(8)
    assert vllm_tokens(registry) == 50


def test_the_table_has_a_line_for_each_layer_and_modality() -> None:
    lines = load_table(ExpertLoad.model_validate(LOAD)).splitlines()
    assert len(lines) == 5
    assert len({len(line) for line in lines}) == 1
    assert lines[2].split()[:5] == ["0", "image", "64", "32", "("]
    assert lines[2].endswith("80 ( 50%)           2.50")


def test_the_table_of_layers_with_different_experts() -> None:
    load = {**LOAD, "expert_tokens": [[[6, 4], [32, 40]], [[5, 5, 5, 5], [64, 32, 16, 16]]]}
    assert len(load_table(ExpertLoad.model_validate(load)).splitlines()) == 5


def test_the_table_of_many_experts_shows_the_most_and_least_loaded() -> None:
    lines = load_table(ExpertLoad.model_validate(large_load())).splitlines()
    assert len(lines) == 1 + 48 * 3
    assert {len(line) for line in lines} == {len(lines[0])} and len(lines[0]) < 80
    assert re.split("  +", lines[0])[3:] == ["most loaded", "least loaded", "experts/token"]
    assert re.split("  +", lines[2].strip()) == ["0", "image", "8000", "127 (0.9%)", "0 (0.7%)", "8.00"]
    idle = load_table(ExpertLoad.model_validate(large_load(0))).splitlines()
    assert idle[1].split() == ["0", "text", "0", "0.00"]


def test_the_demo_shows_the_load_or_the_reason_why_it_cannot() -> None:
    class Served:
        def __init__(self, load: dict[str, Any], in_force: ServedRouting) -> None:
            self._told = {"/v1/routing/load": load, "/v1/routing": in_force.model_dump()}

        def get(self, path: str) -> Any:
            return self._told[path]

    assert load_report(Served(UNSEEN, routing())) == UNSEEN_WHY  # type: ignore[arg-type]
    told = load_report(Served(LOAD, routing(0, 2)))  # type: ignore[arg-type]
    assert load_table(ExpertLoad.model_validate(LOAD)) in told and "(ltdr) has no tail tokens" in told


def test_the_sentence_on_tail_tokens() -> None:
    layers = [
        {"layer": layer, "experts": 4, "policy": {"policy": "ltdr", "tail_experts": 4}} for layer in (0, 2)
    ]
    in_force = {"layers": layers, "in_force": "policy"}
    assert tail_sentence(ExpertLoad.model_validate(LOAD), in_force) == (
        "16 of 128 vision tokens (12.5%, over 2 MoE layers) were tail tokens and used all 4 experts."
    )
    layers[0]["policy"] = layers[1]["policy"] = {"policy": "ltdr", "tail_experts": 3}
    assert tail_sentence(ExpertLoad.model_validate(LOAD), in_force).endswith(
        "tail tokens and used 3 experts."
    )
    layers[1]["policy"] = {"policy": "topk"}
    assert tail_sentence(ExpertLoad.model_validate(LOAD), in_force).endswith(
        "tail tokens and used 3 experts."
    )
    video = {**LOAD, "modalities": ["text", "video"]}
    assert tail_sentence(ExpertLoad.model_validate(video), in_force).startswith("16 of 128 vision tokens")
    sound = {**LOAD, "modalities": ["text", "audio"], "tail_tokens": [0, 0]}
    assert tail_sentence(ExpertLoad.model_validate(sound), in_force).startswith("0 of 0 vision tokens (0.0%")
    layers[0]["policy"] = layers[1]["policy"] = {"policy": "topk"}
    assert "has no tail tokens" in tail_sentence(ExpertLoad.model_validate(LOAD), in_force)
    switched = {"layers": layers, "in_force": "native"}
    assert tail_sentence(ExpertLoad.model_validate(LOAD), switched) == (
        "The model's native routing is in force, not its policy (topk)."
    )
    native = {"layers": [{"policy": {"policy": "native"}}], "in_force": "native"}
    assert tail_sentence(ExpertLoad.model_validate(LOAD), native) == (
        "The policy in force (native) has no tail tokens."
    )


def test_engines_that_see_different_layers_are_refused() -> None:
    """For example, the self-check found that one of them miscounts."""

    class Engines(FakeEngine):
        async def ask(self, method: str, *args: Any) -> list[Any]:
            return [reported.model_dump() for reported in self.answers]

    assert asyncio.run(routing_in_force(Engines(routing(0, 2), routing(0, 2)))) == routing(0, 2)
    for engines in ((routing(0, 2), routing()), (routing(), routing(0, 2))):
        with pytest.raises(ValueError, match=f"leave --data-parallel-size out. {UNSEEN_WHY}"):
            asyncio.run(routing_in_force(Engines(*engines)))


def test_the_loads_of_data_parallel_engines_are_added_up() -> None:
    idle = {
        **NOTHING,
        "expert_tokens": [[[0, 0, 0, 1], [0] * 4], [[1, 0, 0, 0], [0] * 4]],
        "tokens": [[1, 0], [1, 0]],
        "tail_tokens": [0, 2],
        "tokens_by_experts": [[[0, 1, 0, 0, 0], [0] * 5], [[0, 1, 0, 0, 0], [0] * 5]],
        "scored_tokens": [[1, 0], [1, 0]],
        "near_ties": [[1, 0], [0, 0]],
        "routing_entropy": [[0.5, 0.0], [0.25, 0.0]],
        "routing_variance": [[0.25, 0.0], [0.5, 0.0]],
    }
    total = asyncio.run(ExpertLoadReader(FakeEngine([LOAD, idle], LOAD)).read())
    assert total.modalities == ["text", "image"]
    assert total.expert_tokens == [[[6, 4, 0, 11], [32, 40, 8, 80]], [[6, 5, 5, 5], [64, 32, 16, 16]]]
    assert total.tokens == [[11, 64], [11, 64]]
    assert total.tail_tokens == [16, 2]
    assert total.tokens_by_experts[0] == [[0, 1, 10, 0, 0], [0, 0, 48, 0, 16]]
    assert total.scored_tokens == [[11, 64], [11, 64]]
    assert total.near_ties == [[2, 8], [0, 6]]
    assert total.routing_entropy == [[5.5, 48.0], [7.75, 32.0]]
    assert total.routing_variance == [[0.75, 1.0], [0.75, 3.0]]


def test_the_shadows_of_several_engines_are_added_up_separately() -> None:
    shadow = {**LOAD, "tail_tokens": [3, 1]}
    total = asyncio.run(ExpertLoadReader(FakeEngine([{**LOAD, "shadow": shadow}] * 2)).read())
    assert total.tail_tokens == [32, 0]
    assert total.shadow is not None and total.shadow.tail_tokens == [6, 2]
    assert total.shadow.tokens == total.tokens == [[20, 128]] * 2


def test_values_that_no_engine_has_are_missing_in_the_sum() -> None:
    load = {**LOAD, "near_ties": [[None, None], [0, 6]]}
    total = asyncio.run(ExpertLoadReader(FakeEngine([load, load])).read())
    assert total.near_ties == [[None, None], [0, 12]]


def test_the_start_describes_the_routing_of_each_kind_of_layer() -> None:
    policies = [{"policy": "native"}, {"policy": "topk"}, {"policy": "native"}]
    assert routing(0, 1, 5, experts=128, policies=policies).sentences() == [
        "MoELLaVAPhiForCausalLM takes text, image.",
        "MoE layers with 128 experts: 2. Their gate (softmax) picks 2 experts, "
        "CPUExperts runs them, and the policy is native (set by: checkpoint).",
        "MoE layers with 128 experts: 1. Their gate (softmax) picks 2 experts, "
        "CPUExperts runs them, and the policy is topk (set by: checkpoint).",
    ]
    told = routing(0, 1, policies=policies)
    told.shadow = routing(0, 1, policies=[{"policy": "ltdr"}, {"policy": "entropy"}]).layers
    assert told.sentences()[-2:] == [
        "The shadow policy is ltdr. Its choices are counted and not used. MoE layers: 1.",
        "The shadow policy is entropy. Its choices are counted and not used. MoE layers: 1.",
    ]
    assert routing().sentences() == ["MoELLaVAPhiForCausalLM takes text, image.", UNSEEN_WHY]


def test_a_model_whose_layers_cannot_be_seen_has_empty_lists() -> None:
    app = FastAPI()
    app.include_router(router)
    app.state.expert_load = ExpertLoadReader(FakeEngine([UNSEEN, UNSEEN]))
    app.state.routing = routing()
    client = TestClient(app)
    assert client.get("/v1/routing/load").json() == {**UNSEEN, "shadow": None}
    reported = client.get("/v1/routing").json()
    assert reported["layers"] == [] and reported["not_supported"] == [UNSEEN_WHY]
