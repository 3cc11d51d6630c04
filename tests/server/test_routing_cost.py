"""The benchmark of what routing costs: its arithmetic."""

import pytest

from prismoe.loadtests.routing_cost import (
    PICTURES,
    VLLMS_OWN,
    Turn,
    experts_share,
    experts_used,
    predicted,
    speed,
    take_turns,
)


class FakeEngine:
    def __init__(self, *turn: float) -> None:
        seconds, experts_seconds, pairs = turn
        self.turn = Turn(seconds, experts_seconds, int(pairs))
        self.seeds: list[int] = []

    def run(self, workload: str, seed: int) -> Turn:
        assert workload == PICTURES
        self.seeds.append(seed)
        return self.turn


def test_speeds_are_over_a_base_and_experts_over_top_k() -> None:
    engines = {VLLMS_OWN: FakeEngine(2, 0, 0), "topk": FakeEngine(4, 1, 100), "ltdr": FakeEngine(1, 1, 150)}
    rounds = take_turns(engines, PICTURES, rounds=3)  # type: ignore[arg-type]
    assert engines["topk"].seeds == [-1, 0, 1, 2] and len(rounds) == 3
    assert speed(rounds, "topk", VLLMS_OWN) == "0.500 (0.500-0.500)"
    assert speed(rounds, "ltdr", "topk") == "4.000 (4.000-4.000)"
    assert (experts_used(rounds, "topk"), experts_used(rounds, "ltdr")) == (1, 1.5)
    assert experts_share(rounds) == 0.25
    assert predicted(rounds, "ltdr") == pytest.approx(1 / 1.125)
