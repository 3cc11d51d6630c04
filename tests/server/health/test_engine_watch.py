"""The watch on the engine's steps, with a simulated clock and engine."""

import asyncio
from typing import Any

import pytest

from prismoe.server.health import engine_watch as engine_watch
from prismoe.server.health.engine_watch import EngineWatch
from prismoe.server.health.settings import HealthSettings

pytestmark = pytest.mark.timeout(10)  # A limit that is never reached.

SETTINGS = HealthSettings(heartbeat_seconds=10, ready_seconds=30, stuck_seconds=100)


class Engine:
    """Runs a step on request, unless it is stuck."""

    def __init__(self) -> None:
        self.errored = self.stuck = False
        self.asked = 0
        self.work = 0.0
        self.now = 0.0

    async def ask(self, method: str, *args: Any) -> list[Any]:
        assert method == "prismoe_step"
        self.asked += 1
        if self.stuck:
            await asyncio.Event().wait()
        return [None]

    async def pass_time(self, seconds: float) -> None:
        for _ in range(round(seconds)):
            self.now += 1
            for _ in range(5):
                await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_watch, "TICK_S", 0)


def test_an_idle_engine_gets_a_step_and_a_busy_one_does_not() -> None:
    async def run() -> None:
        engine = Engine()
        watched = EngineWatch(engine, lambda: engine.work, SETTINGS, lambda: engine.now)
        watching = asyncio.create_task(watched.watch())
        for _ in range(50):
            engine.work += 1
            await engine.pass_time(2)
        assert engine.asked == 0 and watched.trouble is None
        await engine.pass_time(100)
        assert 8 <= engine.asked <= 11 and watched.trouble is None
        engine.errored = True
        assert await watching == "The engine died. Its error is in the log above."
        assert watched.trouble == "The engine is dead."

    asyncio.run(run())


def test_a_stuck_engine_is_not_ready_and_then_given_up() -> None:
    async def run() -> None:
        engine = Engine()
        watched = EngineWatch(engine, lambda: engine.work, SETTINGS, lambda: engine.now)
        watching = asyncio.create_task(watched.watch())
        engine.stuck = True
        await engine.pass_time(29)
        assert watched.trouble is None
        await engine.pass_time(10)
        assert watched.trouble == "The engine has taken no step for 39 s."
        assert not watching.done() and engine.asked == 1
        await engine.pass_time(70)
        assert (await watching).startswith("The engine is stuck: it has taken no step for 10")

    asyncio.run(run())


def test_work_makes_a_slow_engine_ready_again() -> None:
    async def run() -> None:
        engine = Engine()
        watched = EngineWatch(engine, lambda: engine.work, SETTINGS, lambda: engine.now)
        watching = asyncio.create_task(watched.watch())
        engine.stuck = True
        await engine.pass_time(60)
        assert watched.trouble is not None
        engine.work += 1
        await engine.pass_time(1)
        assert watched.trouble is None
        watching.cancel()

    asyncio.run(run())


def test_an_engine_whose_step_fails_is_not_ready_and_gets_a_pause() -> None:
    async def run() -> None:
        engine = Engine()

        async def fail(method: str) -> list[Any]:
            engine.asked += 1
            raise RuntimeError("no device")

        engine.ask = fail  # type: ignore[method-assign]
        watched = EngineWatch(engine, lambda: None, SETTINGS, lambda: engine.now)
        watching = asyncio.create_task(watched.watch())
        await engine.pass_time(40)
        assert watched.trouble is not None
        assert engine.asked == 1  # The pause is in real time, which has not passed.
        watching.cancel()

    asyncio.run(run())
