"""A server with vLLM's V2 runner, which GPUs have, answers, routes and counts like one with V1."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.server.conftest import image_part, user
from tests.server.running import Server


@pytest.fixture(scope="module")
def v2_http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    running = Server(tmp_path_factory.mktemp("v2") / "log", "--verbose", runner="v2")
    try:
        running.wait_until_ready()
        assert "Using V2 Model Runner" in running.output
        with httpx.Client(base_url=running.url, timeout=120) as client:
            yield client
    finally:
        running.stop()


def inspected(http: httpx.Client, messages: object) -> dict[str, Any]:
    body = {"model": "prismoji", "messages": messages, "max_tokens": 6, "temperature": 0}
    answer: dict[str, Any] = http.post("/v1/routing/inspect", json=body).raise_for_status().json()
    return answer


def test_an_image_and_a_text(
    http: httpx.Client, v2_http: httpx.Client, picture: bytes, other_picture: bytes
) -> None:
    two_pictures = user(image_part(picture), "What is this?", image_part(other_picture), "And this?")
    for messages in (two_pictures, user("Hello")):
        mine, theirs = inspected(v2_http, messages), inspected(http, messages)
        assert mine["completion"]["choices"][0]["message"] == theirs["completion"]["choices"][0]["message"]
        assert mine["completion"]["usage"] == theirs["completion"]["usage"]
        assert mine["routing"]["tokens"] == theirs["routing"]["tokens"]
        for layer, its in zip(mine["routing"]["layers"], theirs["routing"]["layers"], strict=True):
            assert (layer["experts"], layer["tail"]) == (its["experts"], its["tail"])
