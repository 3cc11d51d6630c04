"""Images hold at most the operator's memory, however small their files or pictures are."""

import asyncio
import gc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from PIL import Image
from vllm.exceptions import GracefulHTTPError, VLLMValidationError

from prismoe.server.media.budget import BudgetSpent, MediaBudget
from prismoe.server.media.connector import RequestMedia
from prismoe.server.media.decode import decode
from prismoe.server.media.refusal import MediaRefused
from prismoe.server.media.settings import MediaSettings
from tests.server.media.pictures import encoded, png
from tests.server.media.test_connector import data_url
from tests.server.media.web import Counted, answer, endless, running

MILLION = encoded(Image.new("RGB", (1000, 1000)), "WEBP", lossless=True)
MANY = 10**8


def test_an_image_counts_until_it_is_freed() -> None:
    budget = MediaBudget(6)  # two images of three megabytes
    images = [decode(MILLION, MANY, budget), decode(MILLION, MANY, budget)]
    for _ in range(3):
        with pytest.raises(BudgetSpent):
            decode(MILLION, MANY, budget)
    copy = images.pop().copy()
    images += [decode(MILLION, MANY, budget)]
    with pytest.raises(BudgetSpent):
        decode(MILLION, MANY, budget)
    assert copy.size == (1000, 1000)


def test_refused_images_count_nothing() -> None:
    budget = MediaBudget(3)
    for _ in range(10):
        with pytest.raises(MediaRefused):
            decode(png(1000, 1000), MANY, budget)
    decode(MILLION, MANY, budget)


def test_many_threads_leave_nothing_counted() -> None:
    budget = MediaBudget(12)

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


def test_the_client_can_retry() -> None:
    connector = RequestMedia()
    connector.budget = MediaBudget(6)

    async def ask() -> list[object]:
        images = [connector.fetch_image_async(data_url(MILLION)) for _ in range(3)]
        return await asyncio.gather(*images, return_exceptions=True)

    full = [each for each in asyncio.run(ask()) if isinstance(each, GracefulHTTPError)]
    assert len(full) == 1 and full[0].http_status == HTTPStatus.TOO_MANY_REQUESTS
    assert "try again" in str(full[0])


LARGE = encoded(Image.new("RGB", (1, 1))) + bytes(400 * 1024)
"""A file with one pixel followed by 400 KiB."""


@pytest.fixture(scope="module")
def web() -> Iterator[Counted]:
    server = Counted(
        "127.0.0.2", behaviours={"/a.png": answer(LARGE), "/none": answer(bytes(10**6)), "/endless": endless}
    )
    with running(server):
        yield server


@pytest.fixture
def connector(web: Counted, tmp_path: Path) -> RequestMedia:
    """A connector with room for two large files."""
    connector = RequestMedia(
        allowed_local_media_path=str(tmp_path), allowed_media_domains=[f"http://*:{web.server_port}"]
    )
    connector.settings = MediaSettings(fetch_networks=(IPv4Network("127.0.0.2/32"),))
    connector.budget = MediaBudget(1)
    return connector


def of_source(source: str, web: Counted, folder: Path) -> str:
    """The URL of a large file."""
    (folder / "a.png").write_bytes(LARGE)
    return {
        "data": data_url(LARGE),
        "file": (folder / "a.png").as_uri(),
        "http": f"http://127.0.0.2:{web.server_port}/a.png",
    }[source]


@pytest.mark.parametrize("source", ["data", "file", "http"])
def test_a_file_counts_until_its_image_is_freed(
    connector: RequestMedia, web: Counted, tmp_path: Path, source: str
) -> None:
    url = of_source(source, web, tmp_path)
    images = [connector.fetch_image(url), connector.fetch_image(url)]
    for _ in range(3):
        with pytest.raises(GracefulHTTPError):
            connector.fetch_image(url)
    images.pop()
    gc.collect()
    assert connector.fetch_image(url).size == images[0].size == (1, 1)


def test_a_file_counts_while_it_arrives_and_not_after_a_refusal(
    connector: RequestMedia, web: Counted
) -> None:
    at = f"http://127.0.0.2:{web.server_port}"
    for _ in range(3):
        with pytest.raises(GracefulHTTPError):
            connector.fetch_image(f"{at}/endless")
        with pytest.raises(VLLMValidationError):
            connector.fetch_image(f"{at}/none")
    assert connector.fetch_image(f"{at}/a.png").size == (1, 1)
