"""However many callers there are, only one call runs."""

import asyncio

import pytest

from prismoe.server.metrics.single_flight import SingleFlight

MANY = 50


class Slow:
    """Answers with the number of the call, when it is released."""

    def __init__(self) -> None:
        self.asked = 0
        self.under_way = 0
        self.go = asyncio.Event()

    async def __call__(self) -> int:
        self.asked += 1
        self.under_way += 1
        assert self.under_way == 1
        number = self.asked
        await self.go.wait()
        self.under_way -= 1
        if number == 3:
            raise ValueError("three")
        return number


def test_later_callers_share_one_later_answer() -> None:
    async def crowd() -> None:
        slow = Slow()
        shared = SingleFlight(slow)
        first = [asyncio.create_task(shared()) for _ in range(MANY)]
        await asyncio.sleep(0.01)
        second = [asyncio.create_task(shared()) for _ in range(MANY)]
        await asyncio.sleep(0.01)
        second.pop().cancel()
        slow.go.set()
        assert await asyncio.gather(*first) == [1] * MANY
        assert await asyncio.gather(*second) == [2] * (MANY - 1)
        with pytest.raises(ValueError, match="three"):
            await shared()
        assert await shared() == 4

    asyncio.run(crowd())
