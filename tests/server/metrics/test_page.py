"""The text of the metrics, without an engine."""

import asyncio
import math
import re
import time
from typing import Any, get_args

import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from starlette.testclient import TestClient

from prismoe.model_plugins.worker.settings import MetricsLevel
from prismoe.server.metrics.load_reader import ExpertLoadReader
from prismoe.server.metrics.page import ExpertMetrics, MetricsPage
from tests.paths import REPOSITORY
from tests.server import fake_engine
from tests.server.fake_engine import NOTHING, UNSEEN, FakeEngine, large_load, routing

LOAD: dict[str, Any] = {
    **fake_engine.LOAD,
    "expert_tokens": [[[10, 9, 0, 1], [32, 40, 8, 80]], [[5, 5, 5, 5], [64, 32, 16, 16]]],
}
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def expert_metrics(
    *loads: dict[str, Any], level: MetricsLevel = "full", model_name: str = "model"
) -> ExpertMetrics:
    reader = ExpertLoadReader(FakeEngine(*loads))
    for _ in loads:
        asyncio.run(reader.read())
    return ExpertMetrics(reader, routing(0, 2), model_name, level)


def samples(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse_openmetrics(text + "# EOF\n")
        for sample in family.samples
    }


def value(of: Samples, name: str, **labels: str) -> float:
    return of[name, frozenset({**labels, "model_name": "model"}.items())]


def test_counters_have_the_counts_since_the_start() -> None:
    exported = samples(expert_metrics(NOTHING, LOAD).text(True))
    assert value(exported, "prismoe_tokens_total", modality="image") == 64
    assert value(exported, "prismoe_routed_tokens_total", modality="image") == 128
    assert value(exported, "prismoe_used_experts_total", modality="text") == 40
    assert value(exported, "prismoe_used_experts_total", modality="image") == 288
    assert value(exported, "prismoe_vision_tail_tokens_total") == 16
    assert value(exported, "prismoe_expert_tokens_total", layer="2", modality="image", expert="1") == 32
    assert value(exported, "prismoe_layer_vision_tail_tokens_total", layer="0") == 16
    assert value(exported, "prismoe_expert_load_reading_failures_total") == 0


SHADOWED = {
    **LOAD,
    "shadow": {**LOAD, "expert_tokens": [[[2, 3, 0, 0], [1, 0, 0, 7]]] * 2, "tail_tokens": [5, 1]},
}


def shadowed(policy: dict[str, Any], level: MetricsLevel = "summary") -> ExpertMetrics:
    reader = ExpertLoadReader(FakeEngine(SHADOWED))
    asyncio.run(reader.read())
    served = routing(0, 2, policies=[{"policy": "native"}] * 2)
    served.shadow = routing(0, 2, policies=[policy] * 2).layers
    return ExpertMetrics(reader, served, "model", level)


@pytest.mark.parametrize("level", ["summary", "full"])
def test_a_shadow_has_its_own_series_and_changes_no_other(level: MetricsLevel) -> None:
    exported = samples(shadowed({"policy": "ltdr", "tail_experts": 3}, level).text(True))
    assert value(exported, "prismoe_shadow_used_experts_total", modality="text") == 10
    assert value(exported, "prismoe_shadow_used_experts_total", modality="image") == 16
    assert value(exported, "prismoe_shadow_vision_tail_tokens_total") == 6
    assert value(exported, "prismoe_used_experts_total", modality="image") == 288
    reader = ExpertLoadReader(FakeEngine(LOAD))
    asyncio.run(reader.read())
    without = ExpertMetrics(reader, routing(0, 2, policies=[{"policy": "native"}] * 2), "model", level)
    assert {key: one for key, one in exported.items() if "shadow" not in key[0]} == samples(
        without.text(True)
    )


def test_a_shadow_adds_few_series_and_none_for_tails_that_it_lacks() -> None:
    metrics = shadowed({"policy": "dual_threshold"})
    assert metrics.series == 6 + 26 * 2 + 2
    assert "shadow_vision_tail" not in metrics.text(True)


def test_the_experts_of_a_token_are_a_histogram() -> None:
    exported = samples(expert_metrics(NOTHING, LOAD).text(True))
    for bound, tokens in {
        "0.0": 0,
        "1.0": 0,
        "2.0": 112,
        "3.0": 112,
        "4.0": 128,
        "64.0": 128,
        "+Inf": 128,
    }.items():
        assert value(exported, "prismoe_token_experts_bucket", modality="image", le=bound) == tokens
    assert value(exported, "prismoe_token_experts_count", modality="image") == 128
    assert value(exported, "prismoe_token_experts_sum", modality="image") == 288
    assert value(exported, "prismoe_token_experts_sum", modality="text") == 40


def test_tokens_without_experts_are_counted() -> None:
    """In the first layer, all image tokens lose their experts."""
    lost = LOAD | {
        "expert_tokens": [[[6, 4, 0, 10], [0] * 4], LOAD["expert_tokens"][1]],
        "tokens_by_experts": [[[0, 0, 10, 0, 0], [64, 0, 0, 0, 0]], LOAD["tokens_by_experts"][1]],
    }
    exported = samples(expert_metrics(NOTHING, lost).text(True))
    for bound, tokens in {"0.0": 64, "1.0": 64, "2.0": 128, "+Inf": 128}.items():
        assert value(exported, "prismoe_token_experts_bucket", modality="image", le=bound) == tokens
    assert value(exported, "prismoe_token_experts_sum", modality="image") == 128
    assert value(exported, "prismoe_routed_tokens_total", modality="image") == 128
    assert value(exported, "prismoe_used_experts_total", modality="image") == 128
    assert value(exported, "prismoe_idle_experts", modality="image") == 4
    assert value(exported, "prismoe_expert_load_variation", modality="image") == pytest.approx(384**0.5 / 32)
    assert value(exported, "prismoe_modality_equity_index") == 1  # the second layer's
    assert not any(math.isnan(number) for number in exported.values())


def test_the_routers_statistics_are_summed() -> None:
    exported = samples(expert_metrics(NOTHING, LOAD).text(True))
    assert value(exported, "prismoe_near_ties_sum", modality="image") == 14
    assert value(exported, "prismoe_near_ties_count", modality="image") == 128
    assert value(exported, "prismoe_routing_entropy_nats_count", modality="image") == 128
    assert value(exported, "prismoe_routing_entropy_nats_sum", modality="image") == 80
    assert value(exported, "prismoe_routing_probability_variance_sum", modality="text") == 0.75
    assert value(exported, "prismoe_layer_near_ties_sum", layer="2", modality="image") == 6
    assert value(exported, "prismoe_layer_routing_entropy_nats_sum", layer="2", modality="text") == 7.5
    assert value(exported, "prismoe_layer_routing_entropy_nats_count", layer="2", modality="text") == 10
    assert value(exported, "prismoe_layer_routing_probability_variance_sum", layer="0", modality="image") == 1


def test_gauges_cover_the_window() -> None:
    exported = samples(expert_metrics(NOTHING, LOAD).text(True))
    assert value(exported, "prismoe_window_tokens", modality="text") == 10
    assert value(exported, "prismoe_idle_experts", modality="text") == 1
    assert value(exported, "prismoe_idle_experts", modality="image") == 0
    assert value(exported, "prismoe_layer_expert_load_variation", layer="2", modality="text") == 0
    assert value(exported, "prismoe_expert_load_variation", modality="image") == pytest.approx(
        (672**0.5 / 40 + 384**0.5 / 32) / 2
    )
    assert value(exported, "prismoe_layer_overall_load_variation", layer="2") == pytest.approx(384**0.5 / 37)
    assert value(exported, "prismoe_overall_load_variation") == pytest.approx(
        ((672.5**0.5 / 45) + 384**0.5 / 37) / 2
    )
    assert value(exported, "prismoe_layer_most_loaded_text_ratio", layer="0") == 1 / 81
    assert value(exported, "prismoe_expert_text_ratio", layer="2", expert="3") == 5 / 21
    assert value(exported, "prismoe_layer_modality_equity_index", layer="0") == 2 / 4
    assert value(exported, "prismoe_layer_modality_equity_index", layer="2") == 1
    assert value(exported, "prismoe_modality_equity_index") == 0.75


def test_info_has_the_policy_in_force() -> None:
    exported = samples(expert_metrics(NOTHING, LOAD).text(True))
    assert value(exported, "prismoe_routing_info", policy="ltdr", source="checkpoint") == 1
    assert value(exported, "prismoe_layer_routing_info", layer="2", policy="ltdr") == 1


def test_without_tokens_there_are_counters_and_no_statistics() -> None:
    exported = {name for name, _ in samples(expert_metrics(NOTHING, NOTHING).text(True))}
    assert {"prismoe_expert_tokens_total", "prismoe_window_tokens"} <= exported
    assert (
        not {"prismoe_modality_equity_index", "prismoe_idle_experts", "prismoe_expert_text_ratio"} & exported
    )


@pytest.mark.parametrize("level", ["summary", "full"])
def test_there_are_as_many_series_as_documented(level: MetricsLevel) -> None:
    metrics = expert_metrics(NOTHING, LOAD, level=level)
    assert len(samples(metrics.text(True))) == metrics.series


def test_a_modality_without_tokens_in_the_window_has_no_statistics() -> None:
    text_alone = {**LOAD, "expert_tokens": [[[10, 9, 0, 1], [0] * 4], [[5] * 4, [0] * 4]]}
    exported = samples(expert_metrics(NOTHING, text_alone | {"tokens": [[10, 0]] * 2}).text(True))
    for name in (
        "prismoe_expert_load_variation",
        "prismoe_layer_expert_load_variation",
        "prismoe_idle_experts",
    ):
        assert {dict(labels)["modality"] for series, labels in exported if series == name} == {"text"}
    assert value(exported, "prismoe_window_tokens", modality="image") == 0
    assert value(exported, "prismoe_layer_overall_load_variation", layer="2") == 0
    assert not {"prismoe_modality_equity_index", "prismoe_layer_modality_equity_index"} & {
        name for name, _ in exported
    }


def test_layers_whose_gate_gives_no_order_are_left_out_of_the_near_ties() -> None:
    load = {**LOAD, "near_ties": [[None, None], [0, 6]]}
    exported = samples(expert_metrics(NOTHING, load).text(True))
    assert value(exported, "prismoe_near_ties_sum", modality="image") == 6
    assert value(exported, "prismoe_near_ties_count", modality="image") == 64
    near_ties = {labels for name, labels in exported if name == "prismoe_layer_near_ties_sum"}
    assert {dict(labels)["layer"] for labels in near_ties} == {"2"}
    assert value(exported, "prismoe_routing_entropy_nats_count", modality="image") == 128
    nowhere = {**LOAD, "near_ties": [[None, None]] * 2}
    assert "near_ties" not in expert_metrics(NOTHING, nowhere).text(True)


def test_metrics_of_sampled_tokens_say_so() -> None:
    families = {
        family.name: family for family in parse_openmetrics(expert_metrics(LOAD).text(True) + "# EOF\n")
    }
    for name in ("near_ties", "routing_entropy_nats", "routing_probability_variance"):
        for prefix in ("prismoe", "prismoe_layer"):
            assert "ampled tokens" in families[f"{prefix}_{name}"].documentation


def test_a_model_whose_layers_cannot_be_seen_has_no_series() -> None:
    reader = ExpertLoadReader(FakeEngine(UNSEEN))
    asyncio.run(reader.read())
    for level in get_args(MetricsLevel):
        metrics = ExpertMetrics(reader, routing(), "model", level)
        assert metrics.series == 0
        assert metrics.text(True) == metrics.text(False) == ""


def test_the_summary_grows_only_with_the_modalities() -> None:
    small = expert_metrics(LOAD, level="summary")
    assert small.series == 6 + 26 * 2
    assert large_metrics("summary").series == 6 + 26 * 3


def test_both_formats_have_the_same_values_with_types_units_and_help() -> None:
    metrics = expert_metrics(NOTHING, LOAD)
    new = {family.name: family for family in parse_openmetrics(metrics.text(True) + "# EOF\n")}
    old = {family.name: family for family in parse_text(metrics.text(False))}
    assert len(new) == len(old) == 27
    for name, family in new.items():
        older = old[f"{name}_info" if family.type == "info" else name]
        assert [sample[:3] for sample in older.samples] == [sample[:3] for sample in family.samples]
        assert older.type == ("gauge" if family.type == "info" else family.type)
        assert older.documentation == family.documentation
        assert family.documentation.endswith(".")
        assert name.endswith(family.unit)
    assert new["prismoe_expert_tokens"].unit == "tokens"


def test_label_values_are_escaped() -> None:
    name = 'a "model"\n\\in two lines'
    for openmetrics, parse, end in ((True, parse_openmetrics, "# EOF\n"), (False, parse_text, "")):
        text = expert_metrics(LOAD, model_name=name, level="summary").text(openmetrics) + end
        assert {sample.labels["model_name"] for family in parse(text) for sample in family.samples} == {name}


def test_the_page_has_both_sources_in_the_requested_format() -> None:
    registry = CollectorRegistry()
    Counter("vllm:prompt_tokens", "Tokens.", registry=registry).inc(3)
    app = FastAPI()
    MetricsPage(registry, expert_metrics(NOTHING, LOAD)).add_to(app)
    page = TestClient(app)
    new = page.get("/metrics", headers={"Accept": "application/openmetrics-text;version=1.0.0"})
    assert new.headers["content-type"].startswith("application/openmetrics-text")
    old = page.get("/metrics")
    assert old.headers["content-type"].startswith("text/plain")
    for families in (parse_openmetrics(new.text), parse_text(old.text)):
        exported = {sample.name: sample.value for family in families for sample in family.samples}
        assert exported["vllm:prompt_tokens_total"] == 3
        assert exported["prismoe_routing_info"] == 1


def large_metrics(level: MetricsLevel) -> ExpertMetrics:
    reader = ExpertLoadReader(FakeEngine(large_load(0), large_load()))
    asyncio.run(reader.read())
    modalities = ["text", "image", "video"]
    metrics = ExpertMetrics(reader, routing(*range(48), experts=128, modalities=modalities), "model", level)
    asyncio.run(reader.read())
    return metrics


@pytest.mark.parametrize(("level", "series"), [("summary", 84), ("full", 84 + 48 * (4 * 128 + 26))])
def test_a_large_model_is_exported_quickly(level: MetricsLevel, series: int) -> None:
    metrics = large_metrics(level)
    exported = samples(metrics.text(True))
    assert len(exported) == metrics.series == series
    assert value(exported, "prismoe_used_experts_total", modality="video") == 48 * 8 * 3200
    assert value(exported, "prismoe_routing_entropy_nats_count", modality="text") == 48 * 200
    assert value(exported, "prismoe_modality_equity_index") == pytest.approx(114 / 128)
    times = []
    for _ in range(5):
        start = time.process_time()
        metrics.text(True)
        times.append(time.process_time() - start)
    assert min(times) < 0.1


def test_the_documentation_lists_every_metric_with_kind_and_labels() -> None:
    page = (REPOSITORY / "docs" / "metrics.md").read_text()
    rows = re.findall(r"^\| `(prismoe_\w+)` \| (\w+) \| (.*?) \|", page, re.M)
    exported = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    shadow = shadowed({"policy": "ltdr", "tail_experts": 3})
    families = [
        family
        for metrics in (expert_metrics(NOTHING, LOAD), shadow)
        for family in parse_openmetrics(metrics.text(True) + "# EOF\n")
    ]
    assert "prismoe_shadow_used_experts" in {family.name for family in families}
    for family in families:
        name = family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")
        labels = {label for sample in family.samples for label in sample.labels} - {"model_name", "le"}
        assert exported.get(name) == (family.type, labels), (
            f"docs/metrics.md: {name} is a {family.type} with {labels}."
        )
