"""However many ask, one question is under way."""

import asyncio

import pytest

from prismoe.server.metrics.single_flight import SingleFlight

MANY = 50


class Slow:
    """Answers with the number of the question, when it is let go."""

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


def test_who_comes_later_gets_a_later_answer_and_all_of_them_the_same() -> None:
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
