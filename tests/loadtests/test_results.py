"""Totals, counters, the saturation point and the soak's records, for made-up numbers."""

import pytest

from prismoe.loadtests.report import markdown
from prismoe.loadtests.results import ExpertUse, totals_agree
from prismoe.loadtests.saturation import saturation
from prismoe.loadtests.soak import bad_requests, consistent, growth
from prismoe.loadtests.target import Counters, computed_tokens, difference, parse, total
from tests.loadtests.runs import memory, phase, run

METRICS = """\
# TYPE vllm:request_success_total counter
vllm:request_success_total{engine="0",finished_reason="stop"} 3
vllm:request_success_total{engine="1",finished_reason="stop"} 4
vllm:request_success_total{engine="1",finished_reason="length"} 3
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{engine="0"} 200
# TYPE vllm:prompt_tokens_cached_total counter
vllm:prompt_tokens_cached_total{engine="0"} 30
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0"} 40
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0"} 2
# TYPE process_cpu_seconds_total counter
process_cpu_seconds_total 12.5
# TYPE prismoe_tokens_total counter
prismoe_tokens_total{modality="text"} 60
prismoe_tokens_total{modality="image"} 140
# TYPE prismoe_routed_tokens_total counter
prismoe_routed_tokens_total{modality="text"} 60
prismoe_routed_tokens_total{modality="image"} 140
# TYPE prismoe_used_experts_total counter
prismoe_used_experts_total{modality="text"} 120
prismoe_used_experts_total{modality="image"} 350
# TYPE prismoe_expert_tokens_total counter
prismoe_expert_tokens_total{layer="2",modality="text",expert="0"} 100
prismoe_expert_tokens_total{layer="2",modality="text",expert="1"} 20
prismoe_expert_tokens_total{layer="2",modality="image",expert="0"} 150
prismoe_expert_tokens_total{layer="2",modality="image",expert="1"} 200
"""


@pytest.fixture
def counted() -> Counters:
    return parse(METRICS, "counter", "_total")


def test_engines_add_up(counted: Counters) -> None:
    assert total(counted, "vllm:request_success_total") == 10
    assert total(counted, "vllm:request_success_total", finished_reason="stop") == 7
    assert total(counted, "vllm:num_requests_running") == total(counted, "process_cpu_seconds_total") == 0
    assert total(parse(METRICS, "gauge"), "vllm:num_requests_running") == 2
    assert computed_tokens(counted) == 200 - 30 + 40 - 10


def test_the_difference_of_two_readings(counted: Counters) -> None:
    assert total(difference(counted, counted), "prismoe_tokens_total") == 0
    assert difference(Counters(), counted) == counted


def test_expert_load(counted: Counters) -> None:
    load = ExpertUse.of(counted)
    assert load is not None
    assert load.tokens == {"text": 60, "image": 140}
    assert load.experts_per_token == {"text": 2.0, "image": 2.5}
    assert load.by_layer == {"2": {"text": [100, 20], "image": [150, 200]}}
    assert ExpertUse.of(parse(METRICS.partition("# TYPE prismoe")[0], "counter", "_total")) is None


def test_vision_is_image_and_video() -> None:
    more = "".join(
        f'# TYPE {name} counter\n{name}{{modality="{modality}"}} {value}\n'
        for name in ("prismoe_tokens_total", "prismoe_routed_tokens_total", "prismoe_used_experts_total")
        for modality, value in {"video": 120, "text": 40, "image": 40}.items()
    )
    load = ExpertUse.of(parse(more, "counter", "_total"))
    assert load is not None and list(load.tokens) == ["text", "image", "video"]
    seen = phase("a").model_copy(update={"expert_load": load})
    assert seen.vision_per_text == 4
    assert "| a | 40 | 40 | 120 | 1 | 1 | 1 |" in markdown(run(seen), None)


def test_consistent_counters(counted: Counters) -> None:
    checks = consistent(counted, {"running": 0, "waiting": 0})
    assert len(checks) == 4 and all(check.holds for check in checks)


@pytest.mark.parametrize(
    ("series", "wrong"), [("prismoe_tokens_total", 1), ("prismoe_expert_tokens_total", 1), (None, 1)]
)
def test_inconsistent_counters(counted: Counters, series: str | None, wrong: int) -> None:
    for name, labels in counted:
        if name == series:
            counted[name, labels] += 20
    checks = consistent(counted, {"running": 0 if series else 1})
    assert sum(not check.holds for check in checks) == wrong


@pytest.mark.parametrize(("server_requests", "sound"), [(10, True), (9, False)])
def test_totals_agree_within_one_percent(server_requests: int, sound: bool) -> None:
    phases = [phase("a"), phase("b", server_requests=server_requests)]
    assert run(*phases, checks=tuple(totals_agree(phases))).sound is sound


def test_preempted_requests_are_computed_again(counted: Counters) -> None:
    counted["prismoe_tokens_total", frozenset({("modality", "text")})] += 50
    assert not all(check.holds for check in consistent(counted, {}))
    counted["vllm:num_preemptions_total", frozenset[tuple[str, str]]()] = 1
    assert all(check.holds for check in consistent(counted, {}))


def test_images_with_a_partly_cached_prefix_are_computed_again(counted: Counters) -> None:
    counted["prismoe_tokens_total", frozenset({("modality", "image")})] += 30
    assert all(check.holds for check in consistent(counted, {}))
    counted["prismoe_tokens_total", frozenset({("modality", "image")})] -= 33
    assert not all(check.holds for check in consistent(counted, {}))


def test_a_failed_request_makes_a_run_unsound() -> None:
    assert run(phase("a")).sound and not run(phase("a", failed=1)).sound


def steps(*requests_per_s: float) -> list[tuple[int, float]]:
    return [(2**index, rate) for index, rate in enumerate(requests_per_s)]


@pytest.mark.parametrize(
    ("rates", "at_once", "most", "reached"),
    [
        ([5, 9, 14, 14.2, 14.1], 4, 14.2, True),
        ([5, 9, 14, 12, 13], 4, 14, True),
        ([5, 9, 14, 20], 8, 20, False),
        ([5, 9, 9.1, 14], 8, 14, False),
    ],
)
def test_the_saturation_point(rates: list[float], at_once: int, most: float, reached: bool) -> None:
    found = saturation([phase("ramp", rate, at_once=n) for n, rate in steps(*rates)])
    assert (found.at_once, found.requests_per_s, found.reached) == (at_once, most, reached)


def test_memory_that_grows() -> None:
    assert growth(memory(90, 99, 100, 100, 100, 105, 110, 110)) == pytest.approx(1.1)
    assert growth(memory(100, 200)) is None


def test_there_are_many_kinds_of_bad_requests() -> None:
    assert len(bad_requests("prismoji")) == 8 and all(bad_requests("prismoji").values())
