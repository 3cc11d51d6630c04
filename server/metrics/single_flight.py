"""One question to the engine for all callers that wait for its answer."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Answer = TypeVar("Answer")


class SingleFlight(Generic[Answer]):
    """Shares the calls of `ask` among its callers. At most one call runs at a time.

    A caller that comes while a call runs shares the next call, because the answer of the running one may be
    older than the caller's question.
    """

    def __init__(self, ask: Callable[[], Awaitable[Answer]]) -> None:
        self._ask = ask
        self._turn = asyncio.Lock()
        self._next: asyncio.Task[Answer] | None = None

    async def __call__(self) -> Answer:
        """Return the answer of a call that begins after this one."""
        if self._next is None:
            self._next = asyncio.create_task(self._ask_in_turn())
        return await asyncio.shield(
            self._next
        )  # A caller that is cancelled must not cancel the others' call.

    async def _ask_in_turn(self) -> Answer:
        async with self._turn:
            self._next = None
            return await self._ask()
