"""Knows when the engine took its last step, and asks an idle one for another."""

import asyncio
import logging
import time
from collections.abc import Callable

from prismoe.server.health.settings import LifeSettings
from prismoe.server.metrics.load_reader import Engine

logger = logging.getLogger("vllm.prismoe")

TICK_S = 0.5


class EngineWatch:
    """Watches one engine.

    A step is seen by `work_done`, which changes with each one that computed tokens (see `ExpertLoadReader`).
    An engine without work is asked for a step with padding alone, which the counters leave out; one that is
    busy answers between two steps.
    """

    def __init__(
        self,
        engine: Engine,
        work_done: Callable[[], float | None],
        settings: LifeSettings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._work_done = work_done
        self._settings = settings
        self._clock = clock
        self._work = work_done()
        self._last_step = clock()
        self._asked: asyncio.Task[None] | None = None

    @property
    def silence(self) -> float:
        """Seconds since the last step."""
        return self._clock() - self._last_step

    @property
    def trouble(self) -> str | None:
        """Why no requests should be sent here, in a sentence; None where there is no reason."""
        if self._engine.errored:
            return "The engine is dead."
        if self.silence > self._settings.ready_seconds:
            return f"The engine has taken no step for {self.silence:.0f} s."
        return None

    async def watch(self) -> str:
        """Return with a sentence once the engine is dead or stuck."""
        try:
            while not self._engine.errored:
                self._look()
                if self.silence > self._settings.stuck_seconds:
                    return f"The engine is stuck: it has taken no step for {self.silence:.0f} s."
                await asyncio.sleep(TICK_S)
            return "The engine died. Its error is in the log above."
        finally:
            if self._asked is not None:
                self._asked.cancel()

    def _look(self) -> None:
        work = self._work_done()
        if work != self._work:
            self._work = work
            self._last_step = self._clock()
        elif self._asked is None and self.silence >= self._settings.heartbeat_seconds:
            self._asked = asyncio.create_task(self._ask_for_a_step())

    async def _ask_for_a_step(self) -> None:
        try:
            await self._engine.ask("prismoe_step")
            self._last_step = self._clock()
        except Exception as error:
            if not self._engine.errored:
                logger.warning("The engine could not take a step: %s", error)
                await asyncio.sleep(self._settings.heartbeat_seconds)
        finally:
            self._asked = None
