"""Reads the expert load from the engine over vLLM's RPC, at an interval."""

import asyncio
import logging
import math
import time
from collections.abc import Callable
from typing import Any, Protocol

from prismoe.server.metrics.expert_load import ExpertLoad
from prismoe.server.metrics.load_window import LoadWindow
from prismoe.server.metrics.single_flight import SingleFlight

# This logger is a child of vLLM's, so that vLLM's handlers and levels apply.
logger = logging.getLogger("vllm.prismoe")

RECENT_S = 0.5
"""The largest age of a reading for a client, so that clients can't make the engine answer more often."""


class Engine(Protocol):
    """The part of vLLM's engine client that the server uses."""

    @property
    def errored(self) -> bool:
        """Whether the engine is dead."""

    async def ask(self, method: str, *args: Any) -> list[Any]:
        """Call a method in each data-parallel engine, and return each engine's answer."""


class ExpertLoadReader:
    """Reads the load, and keeps the latest reading.

    `work_done` returns how much work the engine has done so far, in any unit, without asking the engine. It
    returns None if that is unknown.
    """

    def __init__(
        self,
        engine: Engine,
        work_done: Callable[[], float | None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._work_done = work_done
        self._clock = clock
        self._asked_at = -math.inf
        self._work_at_latest: float | None = None
        self.latest: ExpertLoad | None = None
        self.window = LoadWindow()
        self.failures = 0
        self._reading = SingleFlight(self._read)

    async def read(self) -> ExpertLoad:
        """Read the load now, and return it. Callers at the same time share one reading."""
        return await self._reading()

    async def recent(self) -> ExpertLoad:
        """Return the latest load if it is at most RECENT_S old; otherwise read it."""
        if self.latest is not None and self._clock() - self._asked_at < RECENT_S:
            return self.latest
        return await self.read()

    async def _read(self) -> ExpertLoad:
        work, asked_at = self._work_done(), self._clock()
        answers = await self._engine.ask("prismoe_expert_load")
        self.latest = ExpertLoad.total([ExpertLoad.model_validate(answer) for answer in answers])
        self.window.add(self.latest)
        self._work_at_latest, self._asked_at = work, asked_at
        return self.latest

    async def poll(self, interval: float) -> None:
        """Read the load every `interval` seconds while the engine works, until the engine is dead."""
        while not self._engine.errored:
            await asyncio.sleep(interval)
            if self._work_at_latest is not None and self._work_done() == self._work_at_latest:
                continue  # vLLM's worker spins for a second after each call. An idle one can sleep.
            try:
                await self.read()
            except Exception as error:
                if not self._engine.errored:
                    self.failures += 1
                    logger.warning(
                        "The expert load could not be read, so /metrics keeps the last one. %s", error
                    )
