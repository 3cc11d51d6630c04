"""The random steps of `scale` are counted, and reach the engine's answer and the server's page."""

import pytest

from prismoe.benchmarks.serving import scale
from prismoe.benchmarks.serving.scale import Engine, Size, server_costs, step_costs

SIZE = Size(layers=3, experts=5, top_k=2, engines=2)


def test_each_token_is_counted_in_each_layer() -> None:
    engine = Engine(SIZE)
    engine.write(7)
    engine.count(3)
    answer = engine.read()
    assert answer["tokens"] == [[3 * 2, 3 * 5, 0]] * SIZE.layers
    assert [[sum(row) for row in rows] for rows in answer["expert_tokens"]] == [[12, 30, 0]] * SIZE.layers
    assert answer["scored_tokens"] == answer["tokens"]


def test_costs_are_reported_for_every_step_and_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "STEPS", {"64": 64, "2,048": 2048})
    engine = Engine(SIZE)
    costs = step_costs(engine, 1)
    assert [*costs] == ["64", "2,048"]
    reported = server_costs(SIZE, engine.read(), 1)
    full, summary = (int(reported[f"{level}: series"].replace(",", "")) for level in ("full", "summary"))
    assert full > summary + SIZE.layers * SIZE.experts * len(scale.MODALITIES)
