"""Expert load: what the engine counted, read over vLLM's RPC."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self

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

    @classmethod
    def total(cls, loads: Sequence[Self]) -> Self:
        """What engines that share the requests counted together."""
        counts = {
            name: _sum([getattr(load, name) for load in loads])
            for name in ("expert_tokens", "tokens", "tail_tokens")
        }
        return cls(layers=loads[0].layers, **counts)


def _sum(counts: Sequence[Any]) -> Any:
    """The sum of nested lists of equal form, number by number."""
    if isinstance(counts[0], list):
        return [_sum(part) for part in zip(*counts, strict=True)]
    return sum(counts)


class Engine(Protocol):
    """What is needed of vLLM's engine client."""

    @property
    def errored(self) -> bool:
        """Whether the engine is dead."""

    async def ask(self, method: str) -> list[Any]:
        """The answer of each data-parallel engine."""


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
        answers = await self._engine.ask("prismoe_expert_load")
        self.latest = ExpertLoad.total([ExpertLoad.model_validate(answer) for answer in answers])
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
