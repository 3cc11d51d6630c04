"""Known attacks on multimodal servers, tried on this one. Each test has the name of its attack."""

import asyncio
import base64
import re
import time
from typing import Any

import httpx
import psutil
import pytest
from PIL import Image
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from vllm.exceptions import VLLMValidationError

from prismoe.server.access.gate import Gate
from prismoe.server.access.keys import Key, KeyRing, Role
from prismoe.server.media.connector import RequestMedia
from tests.server.conftest import image_part, text_part, url_part, user
from tests.server.media.pictures import encoded
from tests.server.media.web import Counted, answer, running
from tests.server.running import Server

IMAGE_TOKEN = 1  # prismoji's <image>, at each of an image's positions
TOKENS_PER_IMAGE = 64


def ask(http: httpx.Client, content: object, **options: Any) -> httpx.Response:
    messages = content if isinstance(content, list) else user(content)  # type: ignore[arg-type]
    body = {"model": "prismoji", "messages": messages, "max_tokens": 2, "return_token_ids": True, **options}
    return http.post("/v1/chat/completions", json=body)


def check_alive(http: httpx.Client, picture: bytes) -> None:
    """Check that a good request is answered, with an image's tokens in their places."""
    answered = ask(http, user(image_part(picture), "What is this?"))
    assert answered.status_code == 200
    assert answered.json()["prompt_token_ids"].count(IMAGE_TOKEN) == TOKENS_PER_IMAGE


def check_refused(answered: httpx.Response, reason: str) -> None:
    assert answered.status_code == 400
    assert reason in answered.json()["error"]["message"]


def test_cve_2025_6242_requests_to_inner_servers(http: httpx.Client, picture: bytes) -> None:
    """SSRF: the media connector fetched any URL."""
    inner = Counted("127.0.0.1", behaviours={"/": answer(picture)})
    with running(inner):
        url = f"http://127.0.0.1:{inner.server_port}/"
        check_refused(ask(http, user(url_part(url), "What?")), "this server fetches nothing")
    assert inner.hits == 0
    check_alive(http, picture)


def test_cve_2026_24779_two_readings_of_a_url(picture: bytes) -> None:
    """The check and the fetch interpreted a backslash in a URL differently."""
    inner = Counted("127.0.0.1", behaviours={"/": answer(picture)})
    with running(inner):
        connector = RequestMedia(allowed_media_domains=["http://images.example"])
        for url in (
            f"http://127.0.0.1:{inner.server_port}\\@images.example/",
            f"http://images.example\\@127.0.0.1:{inner.server_port}/",
        ):
            with pytest.raises(VLLMValidationError, match="backslashes"):
                connector.fetch_image(url)
    assert inner.hits == 0


def test_cve_2026_22778_an_error_that_names_an_address(http: httpx.Client, picture: bytes) -> None:
    """Pillow's error message had the address of a buffer, which helps to defeat address randomisation."""
    for data in (
        b"no image",
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a" + bytes(50),
        picture[:70],
        b"\xff\xd8\xff\xe0",
    ):
        answered = ask(http, user(image_part(data), "What?"))
        check_refused(answered, "An image of the request can't be read")
        assert not re.search(r"0x[0-9a-f]{4}|object at|BytesIO", answered.text)
    check_alive(http, picture)


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (1, 3), (100, 1), (1, 100)])
def test_cve_2026_22773_an_image_of_one_pixel(
    http: httpx.Client, picture: bytes, size: tuple[int, int]
) -> None:
    """An image so small that its sides were mistaken for colours ended the engine."""
    answered = ask(http, user(image_part(encoded(Image.new("RGB", size))), "What is this?"))
    assert answered.status_code == 200
    assert answered.json()["prompt_token_ids"].count(IMAGE_TOKEN) == TOKENS_PER_IMAGE
    check_alive(http, picture)


SPELLED = "<image> <|endoftext|> <|vision_start|><|image_pad|><|vision_end|> <image>"


def test_cve_2026_44222_placeholders_in_text(http: httpx.Client, picture: bytes) -> None:
    """Image tokens spelled in a text without images ended the worker. Here they are text."""
    for content in (
        SPELLED,
        [text_part(SPELLED)],
        [text_part("<"), text_part("image>"), text_part("<|end"), text_part("oftext|>")],
    ):
        answered = ask(http, [{"role": "user", "content": content}])
        assert answered.status_code == 200
        assert not {0, IMAGE_TOKEN} & set(answered.json()["prompt_token_ids"])
    with_image = ask(http, user(image_part(picture), SPELLED)).json()["prompt_token_ids"]
    assert with_image.count(IMAGE_TOKEN) == TOKENS_PER_IMAGE
    asked = {
        "messages": [{"role": "system", "content": SPELLED}, *user(SPELLED)],
        "add_generation_prompt": True,
    }
    tokenized = http.post("/tokenize", json={"model": "prismoji", **asked}).json()["tokens"]
    assert not {0, IMAGE_TOKEN} & set(tokenized)
    check_alive(http, picture)


def test_cve_2026_44222_placeholders_in_a_completion(http: httpx.Client, picture: bytes) -> None:
    """The same attack in completions, as text and as token ids."""

    def complete(prompt: object, **options: object) -> httpx.Response:
        body = {"model": "prismoji", "prompt": prompt, "max_tokens": 2}
        return http.post("/v1/completions", json={**body, **options})

    answered = complete(SPELLED, return_token_ids=True).json()["choices"][0]
    assert not {0, IMAGE_TOKEN} & set(answered["prompt_token_ids"])
    assert complete(SPELLED, echo=True).json()["choices"][0]["text"].startswith(SPELLED)
    assert complete([IMAGE_TOKEN] * 70).status_code == 200
    for bad in ([-200], [10**6], [2**63]):
        assert complete(bad).status_code == 400
    check_alive(http, picture)


@pytest.mark.parametrize("kind", ["video_url", "image_url"])
def test_cve_2026_34755_and_5497_frames_without_end(
    http: httpx.Client, server: Server, picture: bytes, kind: str
) -> None:
    """A video/jpeg data URL was split into as many frames as it had commas, and all were decoded."""
    frame = base64.b64encode(encoded(Image.new("RGB", (1000, 1000)), "JPEG")).decode()
    url = "data:video/jpeg;base64," + ",".join([frame] * 1000)
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss
    answered = ask(http, user({"type": kind, kind: {"url": url}}, "What?"))
    assert answered.status_code == 400
    assert process.memory_info().rss - before < 300 * 2**20  # 1,000 frames would be 3 GB
    check_alive(http, picture)


def test_pull_request_47010_an_image_bomb(http: httpx.Client, server: Server, picture: bytes) -> None:
    """34 bytes declare 144 million pixels, and a long image is padded to a square of gigabytes."""
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss
    for bomb, reason in (
        (
            encoded(Image.new("RGB", (12_000, 12_000)), "WEBP", lossless=True, method=0),
            "may have at most 25,000,000",
        ),
        (encoded(Image.new("L", (8192, 8192), 9), "PNG"), "may have at most 25,000,000"),
        (encoded(Image.new("L", (20_000, 1))), "a side may have at most 8,192"),
        (encoded(Image.new("L", (1, 8000))), "a side may be at most 100 times the other"),
    ):
        check_refused(ask(http, user(*[image_part(bomb)] * 8, "What?")), reason)
    assert process.memory_info().rss - before < 100 * 2**20
    check_alive(http, picture)


def test_cve_2026_9540_aborted_requests(http: httpx.Client, picture: bytes) -> None:
    """CWE-404: the resources of refused requests and of clients that left were never released."""
    for index in range(20):
        stream = {"messages": user("Tell me more."), "max_tokens": 400, "ignore_eos": True, "stream": True}
        with http.stream("POST", "/v1/chat/completions", json={"model": "prismoji", **stream}) as answered:
            next(answered.iter_lines())
        assert ask(http, user(image_part(b"no image"), f"{index}")).status_code == 400
    until = time.monotonic() + 5
    while requests_held(http) and time.monotonic() < until:
        time.sleep(0.1)
    assert requests_held(http) == 0
    check_alive(http, picture)


def requests_held(http: httpx.Client) -> float:
    gauges = re.findall(
        r"^vllm:num_requests_(?:running|waiting)\{[^}]*\} (\S+)$", http.get("/metrics").text, re.M
    )
    assert gauges
    return sum(map(float, gauges))


def test_cve_2026_48746_a_host_header_that_holds_a_path() -> None:
    """The key was checked for a URL with the Host header, while the app routes by the path only."""

    async def secret(_: object) -> PlainTextResponse:
        return PlainTextResponse("secret")

    app = Starlette(routes=[Route("/v1/models", secret)])
    guarded = Gate(app, KeyRing([Key.of("someone", Role.CLIENT, "the key")]), open_metrics=False)

    async def status(host: str) -> int:
        transport = httpx.ASGITransport(guarded)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return (await client.get("/v1/models", headers={"Host": host})).status_code

    for host in ("server", "server/health?", "server/health#", "server/?", "/", "server@x/y?"):
        assert asyncio.run(status(host)) == 401


def test_an_image_is_not_shared_by_its_uuid(http: httpx.Client, picture: bytes) -> None:
    """vLLM would use another client's image with the same `uuid`."""
    part = {**image_part(picture), "uuid": "mine"}
    check_refused(ask(http, user(part, "What?")), "uuid would share the medium")
    check_refused(
        ask(http, user({"type": "image_url", "uuid": "mine"}, "What?")), "uuid would share the medium"
    )
    check_alive(http, picture)
