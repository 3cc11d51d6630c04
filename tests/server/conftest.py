"""One server on the bundled model for all tests that need one, and pictures for it."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI
from PIL import Image, ImageDraw

from tests.server.running import Server


@pytest.fixture(scope="session")
def picture_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures that the server may read."""
    folder = tmp_path_factory.mktemp("pictures")
    picture = Image.new("RGB", (96, 64), "white")
    ImageDraw.Draw(picture).ellipse((20, 10, 70, 60), fill="orange")
    picture.save(folder / "ball.png")
    return folder


@pytest.fixture(scope="session")
def picture(picture_folder: Path) -> bytes:
    return (picture_folder / "ball.png").read_bytes()


@pytest.fixture(scope="session")
def other_picture() -> bytes:
    picture = Image.new("RGB", (128, 128), "white")
    draw = ImageDraw.Draw(picture)
    for step in range(0, 128, 16):
        draw.rectangle((step, 0, step + 8, step + 8), fill=(2 * step, 60, 255 - step))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, picture_folder: Path) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("server") / "log"
    options = ["--expert-load-interval", "0.2", "--expert-metrics", "full"]
    options += [
        "--block-size",
        "32",
    ]  # vLLM's default depends on the CPU; with 128 a repeated picture is not cached
    running = Server(log, *options, "--allowed-local-media-path", str(picture_folder))
    try:
        running.wait_until_ready()
        yield running
    finally:
        running.stop()


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


@pytest.fixture
def client(server: Server) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def image_part(picture: bytes) -> dict[str, object]:
    """A picture as part of a chat message."""
    return url_part(f"data:image/png;base64,{base64.b64encode(picture).decode()}")


def url_part(url: str) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": url}}


def text_part(text: str) -> dict[str, object]:
    return {"type": "text", "text": text}


def user(*content: dict[str, object] | str) -> list[Any]:
    """A conversation with one message."""
    parts = [text_part(part) if isinstance(part, str) else part for part in content]
    return [{"role": "user", "content": parts}]
