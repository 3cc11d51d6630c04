"""Pictures in the forms of clients: turned upright once, with any metadata, in any base64."""

import base64
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from PIL import Image, ImageOps

from tests.paths import DATA
from tests.server.conftest import image_part, url_part, user
from tests.server.media.pictures import chunk, damaged, encoded, inserted, segment, two_colours
from tests.server.media.test_data_url import FORMS
from tests.server.media.test_orientation import exif_of, quarters
from tests.server.running import Server

pytestmark = pytest.mark.server

PICTURES = DATA / "pictures"
QUESTION = "What is this?"
URL = "data:image/png;base64,"


@pytest.fixture(scope="module")
def without_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A server without an image cache, which parses images in another way."""
    server = Server(tmp_path_factory.mktemp("server") / "log", "--mm-processor-cache-gb", "0")
    try:
        server.wait_until_ready()
        with httpx.Client(base_url=server.url, timeout=60) as client:
            yield client
    finally:
        server.stop()


def chat(http: httpx.Client, part: dict[str, object]) -> httpx.Response:
    sampling = {"temperature": 0, "max_tokens": 4, "logprobs": True, "top_logprobs": 8, "ignore_eos": True}
    body = {"model": "prismoji", "messages": user(part, QUESTION), **sampling}
    return http.post("/v1/chat/completions", json=body)


def logprobs(http: httpx.Client, data: bytes) -> list[list[tuple[str, float]]]:
    """The most likely tokens and their log-probabilities, for each position of the answer."""
    answer: dict[str, Any] = chat(http, image_part(data)).raise_for_status().json()
    content = answer["choices"][0]["logprobs"]["content"]
    return [[(top["token"], top["logprob"]) for top in token["top_logprobs"]] for token in content]


def upright_png(data: bytes) -> bytes:
    return encoded(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def check_orientations(http: httpx.Client) -> None:
    for kind in ("PNG", "JPEG", "WEBP"):
        seen = []
        for orientation in range(1, 9):
            data = encoded(quarters(), kind, exif=exif_of(orientation))
            seen.append(logprobs(http, data))
            assert seen[-1] == logprobs(http, upright_png(data)), (kind, orientation)
            assert seen[-1] == logprobs(http, data)  # again, from the cache if there is one
        assert all(seen.count(each) == 1 for each in seen)  # the model distinguishes the orientations


def test_every_orientation_has_the_logits_of_the_upright_picture(http: httpx.Client) -> None:
    check_orientations(http)


def test_every_orientation_is_turned_without_the_image_cache(without_cache: httpx.Client) -> None:
    check_orientations(without_cache)


def test_a_photo_that_was_turned_twice(http: httpx.Client, without_cache: httpx.Client) -> None:
    upright, turned = ((PICTURES / name).read_bytes() for name in ("upright.png", "exif8.png"))
    assert logprobs(http, turned) == logprobs(http, upright)
    assert logprobs(without_cache, turned) == logprobs(without_cache, upright)


@pytest.mark.parametrize("name", ["bad-crc-of-a-comment.png", "icc-3MB.png"])
def test_pictures_that_were_once_refused(http: httpx.Client, name: str) -> None:
    assert logprobs(http, (PICTURES / name).read_bytes()) == logprobs(
        http, (PICTURES / "upright.png").read_bytes()
    )


def test_harmless_metadata_change_nothing(http: httpx.Client) -> None:
    png, jpeg, gif = (encoded(two_colours(size=(64, 64)), kind) for kind in ("PNG", "JPEG", "GIF"))
    for data, original in (
        (inserted(png, damaged(chunk(b"iCCP", b"p\0\0x"))), png),
        (inserted(png, chunk(b"tEXt", b"k\0" + bytes(2**21))), png),
        (inserted(jpeg, segment(0xED, b"Photoshop 3.0\x008BIM\4\4")), jpeg),
        (inserted(gif, b"!\xff\0"), gif),
    ):
        assert logprobs(http, data) == logprobs(http, original)


@pytest.mark.parametrize("part", [chunk(b"IHDR", bytes(13)), chunk(b"PLTE", b"abc"), chunk(b"IDAT", b"x")])
def test_damage_is_reported_as_damage(http: httpx.Client, part: bytes) -> None:
    data = inserted(encoded(two_colours()), damaged(part))
    answer = chat(http, image_part(data))
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert message == "An image of the request can't be read: it is damaged or cut short."


@pytest.mark.parametrize("name", ["base64-newlines.json", "base64-trailing-newline.json"])
def test_requests_that_were_once_refused(http: httpx.Client, name: str) -> None:
    body = json.loads((PICTURES / name).read_text())
    answer = http.post("/v1/chat/completions", json=body).raise_for_status().json()
    plain = {**body, "messages": user(image_part((PICTURES / "upright.png").read_bytes()), QUESTION)}
    expected = http.post("/v1/chat/completions", json=plain).raise_for_status().json()
    assert answer["choices"][0]["message"]["content"] == expected["choices"][0]["message"]["content"]


def ask_chat(http: httpx.Client, text: str) -> httpx.Response:
    return chat(http, url_part(URL + text))


def ask_batch(http: httpx.Client, text: str) -> httpx.Response:
    messages = [user(url_part(URL + text), QUESTION)]
    body = {"model": "prismoji", "messages": messages, "temperature": 0, "max_tokens": 4}
    return http.post("/v1/chat/completions/batch", json=body)


def ask_messages(http: httpx.Client, text: str) -> httpx.Response:
    source = {"type": "base64", "media_type": "image/png", "data": text}
    return messages_with(http, source)


def ask_messages_by_url(http: httpx.Client, text: str) -> httpx.Response:
    return messages_with(http, {"type": "url", "url": URL + text})


def messages_with(http: httpx.Client, source: dict[str, str]) -> httpx.Response:
    content = [{"type": "image", "source": source}, {"type": "text", "text": QUESTION}]
    messages = [{"role": "user", "content": content}]
    body = {"model": "prismoji", "messages": messages, "temperature": 0, "max_tokens": 4}
    return http.post("/v1/messages", json=body)


def ask_responses(http: httpx.Client, text: str) -> httpx.Response:
    content = [{"type": "input_image", "image_url": URL + text}, {"type": "input_text", "text": QUESTION}]
    body = {"model": "prismoji", "input": [{"role": "user", "content": content}]}
    return http.post("/v1/responses", json={**body, "temperature": 0, "max_output_tokens": 4})


def ask_tokenize(http: httpx.Client, text: str) -> httpx.Response:
    return http.post(
        "/tokenize", json={"model": "prismoji", "messages": user(url_part(URL + text), QUESTION)}
    )


def ask_inspect(http: httpx.Client, text: str) -> httpx.Response:
    messages = user(url_part(URL + text), QUESTION)
    body = {"model": "prismoji", "messages": messages, "temperature": 0, "max_tokens": 4}
    return http.post("/v1/routing/inspect", json=body)


VOLATILE = ("id", "created", "created_at", "item_id", "system_fingerprint", "completed_at", "request_id")
ROUTES = [ask_chat, ask_batch, ask_messages, ask_messages_by_url, ask_responses, ask_tokenize, ask_inspect]


def lasting(value: Any) -> Any:
    """An answer without ids and times."""
    if isinstance(value, dict):
        return {key: lasting(each) for key, each in value.items() if key not in VOLATILE}
    return [lasting(each) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize("ask", ROUTES)
def test_every_form_of_base64_on_every_route(
    http: httpx.Client, ask: Callable[[httpx.Client, str], httpx.Response], picture: bytes
) -> None:
    text = base64.b64encode(picture).decode()
    expected = lasting(ask(http, text).raise_for_status().json())
    for name, form in FORMS.items():
        answer = ask(http, form(text))
        assert answer.status_code == 200, (name, answer.text)
        assert lasting(answer.json()) == expected, name
    refused = ask(http, text[:40] + "!" + text[40:])
    assert refused.status_code == 400
    message = refused.json()["error"]["message"]
    assert message == "An image of the request can't be read: the text of its data URL is not base64."
