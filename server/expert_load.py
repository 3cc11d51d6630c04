"""Expert load: what the engine counted, read over vLLM's RPC."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

MODALITIES = ("text", "vision")

# Under vLLM's logger, so that its handlers and levels apply.
logger = logging.getLogger("vllm.prismoe")


class ExpertLoad(BaseModel):
    """Counts since the start, each list by MoE layer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layers: list[int]
    """The MoE layers' indices in the decoder."""
    expert_tokens: list[list[list[int]]]
    """By modality and expert: how many tokens used it."""
    tokens: list[list[int]]
    """By modality: how many tokens were routed."""
    tail_tokens: list[int]
    """How many vision tokens were tail tokens."""


class Engine(Protocol):
    """What is needed of vLLM's engine client."""

    @property
    def errored(self) -> bool:
        """Whether the engine is dead."""

    async def collective_rpc(self, method: str) -> list[Any]:
        """The answer of each rank's worker."""


class ExpertLoadReader:
    """Reads the load, and keeps the latest.

    `work_done` tells how much work the engine has done so far, in any unit, without asking the engine; None
    where that is not known.
    """

    def __init__(self, engine: Engine, work_done: Callable[[], float | None] = lambda: None) -> None:
        self._engine = engine
        self._work_done = work_done
        self._work_at_latest: float | None = None
        self.latest: ExpertLoad | None = None

    async def read(self) -> ExpertLoad:
        """Read the load now."""
        work = self._work_done()
        # Every rank routes every token, so the first rank's counts are the model's.
        self.latest = ExpertLoad.model_validate((await self._engine.collective_rpc("prismoe_expert_load"))[0])
        self._work_at_latest = work
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
                    logger.warning(
                        "The expert load could not be read; /metrics keeps the last one. %s", error
                    )
