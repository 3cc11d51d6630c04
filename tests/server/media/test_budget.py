"""Decoded images hold no more memory than the operator gives them, however small their files are."""

import asyncio
import gc
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus

import pytest
from PIL import Image
from vllm.exceptions import GracefulHTTPError

from prismoe.server.media.budget import BudgetSpent, PixelBudget
from prismoe.server.media.connector import RequestMedia
from prismoe.server.media.decode import decode
from prismoe.server.media.refusal import ImageRefused
from tests.server.media.pictures import encoded, png
from tests.server.media.test_connector import data_url

MILLION = encoded(Image.new("RGB", (1000, 1000)), "WEBP", lossless=True)
MANY = 10**8


def test_an_image_counts_until_it_is_gone() -> None:
    budget = PixelBudget(6)  # two images of three megabytes
    images = [decode(MILLION, MANY, budget), decode(MILLION, MANY, budget)]
    for _ in range(3):
        with pytest.raises(BudgetSpent):
            decode(MILLION, MANY, budget)
    copy = images.pop().copy()
    images += [decode(MILLION, MANY, budget)]
    with pytest.raises(BudgetSpent):
        decode(MILLION, MANY, budget)
    assert copy.size == (1000, 1000)


def test_what_is_refused_counts_nothing() -> None:
    budget = PixelBudget(3)
    for _ in range(10):
        with pytest.raises(ImageRefused):
            decode(png(1000, 1000), MANY, budget)
    decode(MILLION, MANY, budget)


def test_many_threads_leave_nothing_behind() -> None:
    budget = PixelBudget(12)

    def once(_: int) -> int:
        try:
            return decode(MILLION, MANY, budget).width
        except BudgetSpent:
            return 0

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(once, range(200))) >= 1000
    gc.collect()
    images = [decode(MILLION, MANY, budget) for _ in range(4)]
    assert len(images) == 4


def test_the_client_may_come_again() -> None:
    connector = RequestMedia()
    connector.budget = PixelBudget(6)

    async def ask() -> list[object]:
        images = [connector.fetch_image_async(data_url(MILLION)) for _ in range(3)]
        return await asyncio.gather(*images, return_exceptions=True)

    full = [each for each in asyncio.run(ask()) if isinstance(each, GracefulHTTPError)]
    assert len(full) == 1 and full[0].http_status == HTTPStatus.TOO_MANY_REQUESTS
    assert "ask again" in str(full[0])
