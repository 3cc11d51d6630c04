"""The benchmark of what routing costs: its arithmetic."""

from prismoe.loadtests.routing_cost import PICTURES, VLLMS_OWN, compare


class FakeEngine:
    def __init__(self, seconds: float, experts: float) -> None:
        self.result = {"seconds": seconds, "tokens": 8.0, "experts": experts}
        self.seeds: list[int] = []

    def run(self, workload: str, seed: int) -> dict[str, float]:
        assert workload == PICTURES
        self.seeds.append(seed)
        return self.result


def test_speeds_are_over_vllms_own_and_experts_over_top_k() -> None:
    engines = {VLLMS_OWN: FakeEngine(2, 0), "topk": FakeEngine(4, 100), "ltdr": FakeEngine(1, 150)}
    result = compare(engines, PICTURES, rounds=3)  # type: ignore[arg-type]
    assert {name: row["speed"] for name, row in result.items()} == {VLLMS_OWN: 1, "topk": 0.5, "ltdr": 2}
    assert (result["topk"]["experts"], result["ltdr"]["experts"]) == (1, 1.5)
    assert engines["topk"].seeds == [-1, 0, 1, 2]
