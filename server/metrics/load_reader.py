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

# Under vLLM's logger, so that its handlers and levels apply.
logger = logging.getLogger("vllm.prismoe")

RECENT_S = 0.5
"""How old a reading may be that a client gets, so that no client makes the engine answer more often."""


class Engine(Protocol):
    """What is needed of vLLM's engine client."""

    @property
    def errored(self) -> bool:
        """Whether the engine is dead."""

    async def ask(self, method: str, *args: Any) -> list[Any]:
        """The answer of each data-parallel engine."""


class ExpertLoadReader:
    """Reads the load, and keeps the latest.

    `work_done` tells how much work the engine has done so far, in any unit, without asking the engine; None
    where that is not known.
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
        """Read the load now. The engine is asked once for all who want it at a time."""
        return await self._reading()

    async def recent(self) -> ExpertLoad:
        """The load as it was at most RECENT_S ago."""
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
        """Read every `interval` seconds in which work was done, until cancelled or the engine is dead."""
        while not self._engine.errored:
            await asyncio.sleep(interval)
            if self._work_at_latest is not None and self._work_done() == self._work_at_latest:
                continue  # vLLM's worker spins for a second after each question; let an idle one sleep.
            try:
                await self.read()
            except Exception as error:
                if not self._engine.errored:
                    self.failures += 1
                    logger.warning(
                        "The expert load could not be read; /metrics keeps the last one. %s", error
                    )
