"""One question for all who wait for its answer."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Answer = TypeVar("Answer")


class SingleFlight(Generic[Answer]):
    """Asks `ask` one time after the other, however many want to know.

    Who comes while a question is under way shares the next one, as the answer to that may be of before.
    """

    def __init__(self, ask: Callable[[], Awaitable[Answer]]) -> None:
        self._ask = ask
        self._turn = asyncio.Lock()
        self._next: asyncio.Task[Answer] | None = None

    async def __call__(self) -> Answer:
        """An answer to a question that is asked from now on."""
        if self._next is None:
            self._next = asyncio.create_task(self._ask_in_turn())
        return await asyncio.shield(self._next)  # one that goes away leaves it to the others

    async def _ask_in_turn(self) -> Answer:
        async with self._turn:
            self._next = None
            return await self._ask()
