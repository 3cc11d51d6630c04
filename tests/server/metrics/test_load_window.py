"""The sliding window, with a simulated clock."""

import pytest

from prismoe.server.metrics.expert_load import ExpertLoad
from prismoe.server.metrics.load_window import LoadWindow

WINDOW_S, STEPS = 300, 60


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def load(count: int) -> ExpertLoad:
    tokens = [count, 2 * count]
    return ExpertLoad(
        modalities=["text", "image"],
        layers=[3],
        expert_tokens=[[[count, 0], [0, 2 * count]]],
        tokens=[tokens],
        tail_tokens=[0],
        tokens_by_experts=[[[0, count], [0, 2 * count]]],
        scored_tokens=[tokens],
        near_ties=[[0, 0]],
        routing_entropy=[[0, 0]],
        routing_variance=[[0, 0]],
    )


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def window(clock: Clock) -> LoadWindow:
    window = LoadWindow(clock)
    window.add(load(0))
    return window


def test_before_a_window_has_passed_everything_counts(clock: Clock, window: LoadWindow) -> None:
    clock.now = 20
    window.add(load(7))
    counted = window.counted()
    assert counted.used[0].tolist() == [[7, 0], [0, 14]]
    assert counted.tokens_M.tolist() == [7, 14]


@pytest.mark.parametrize("interval", [0.2, 5.0, 7.0, 290.0])
def test_a_steady_load_counts_for_the_window_plus_at_most_a_step_and_a_reading(
    clock: Clock, window: LoadWindow, interval: float
) -> None:
    readings = int(3 * WINDOW_S / interval)
    for reading in range(1, readings + 1):
        clock.now = reading * interval
        window.add(load(reading))
    seconds = float(window.counted().tokens_M[0]) * interval
    assert WINDOW_S - 1e-6 <= seconds <= WINDOW_S + WINDOW_S / STEPS + interval


def test_an_idle_engines_counts_leave_the_window(clock: Clock, window: LoadWindow) -> None:
    clock.now = 10
    window.add(load(5))
    clock.now = 10 + WINDOW_S - 1
    assert window.counted().tokens_M.tolist() == [5, 10]
    clock.now = 10 + WINDOW_S
    assert window.counted().tokens_M.tolist() == [0, 0]


def test_after_a_pause_only_new_work_is_counted(clock: Clock, window: LoadWindow) -> None:
    clock.now = 10
    window.add(load(5))
    clock.now = 5000
    window.add(load(8))
    assert window.counted().tokens_M.tolist() == [3, 6]


def test_memory_is_limited(clock: Clock, window: LoadWindow) -> None:
    for reading in range(20 * STEPS):
        clock.now = reading * WINDOW_S / (10 * STEPS)
        window.add(load(reading))
    assert len(window._readings) <= STEPS + 3
