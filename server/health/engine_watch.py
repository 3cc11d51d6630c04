"""Watches when the engine took its last step, and asks an idle engine for an empty step."""

import asyncio
import logging
import time
from collections.abc import Callable

from prismoe.server.health.settings import HealthSettings
from prismoe.server.metrics.load_reader import Engine

logger = logging.getLogger("vllm.prismoe")

TICK_S = 0.5


class EngineWatch:
    """Watches the engine.

    `work_done` changes with each step that computes tokens (see `ExpertLoadReader`). If it does not change,
    the watch asks the engine for a step of padding only, which the counters leave out. A busy engine answers
    between two steps.
    """

    def __init__(
        self,
        engine: Engine,
        work_done: Callable[[], float | None],
        settings: HealthSettings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._work_done = work_done
        self._settings = settings
        self._clock = clock
        self._work = work_done()
        self._last_step = clock()
        self._asking: asyncio.Task[None] | None = None

    @property
    def silence(self) -> float:
        """The seconds since the last step."""
        return self._clock() - self._last_step

    @property
    def trouble(self) -> str | None:
        """A sentence that says why the server is not ready; None if it is ready."""
        if self._engine.errored:
            return "The engine is dead."
        if self.silence > self._settings.ready_seconds:
            return f"The engine has taken no step for {self.silence:.0f} s."
        return None

    async def watch(self) -> str:
        """Wait until the engine is dead or stuck, and return a sentence that says so."""
        try:
            while not self._engine.errored:
                self._check()
                if self.silence > self._settings.stuck_seconds:
                    return f"The engine is stuck: it has taken no step for {self.silence:.0f} s."
                await asyncio.sleep(TICK_S)
            return "The engine died. Its error is in the log above."
        finally:
            if self._asking is not None:
                self._asking.cancel()

    def _check(self) -> None:
        work = self._work_done()
        if work != self._work:
            self._work = work
            self._last_step = self._clock()
        elif self._asking is None and self.silence >= self._settings.heartbeat_seconds:
            self._asking = asyncio.create_task(self._ask_for_a_step())

    async def _ask_for_a_step(self) -> None:
        try:
            await self._engine.ask("prismoe_step")
            self._last_step = self._clock()
        except Exception as error:
            if not self._engine.errored:
                logger.warning("The engine could not take a step: %s", error)
                await asyncio.sleep(self._settings.heartbeat_seconds)
        finally:
            self._asking = None
