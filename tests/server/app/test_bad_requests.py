"""A bad request gets a 4xx with the reason, and the next request is answered."""

import base64
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.server.conftest import image_part, text_part, url_part, user
from tests.server.media.pictures import encoded

pytestmark = pytest.mark.usefixtures("server")


def ask(http: httpx.Client, messages: object, **options: object) -> httpx.Response:
    request = {"model": "prismoji", "messages": messages, "max_tokens": 4, **options}
    return http.post("/v1/chat/completions", json=request)


def refusal(http: httpx.Client, messages: object, good: object, **options: object) -> str:
    """The message for a bad request, after a check that a good request is answered afterwards."""
    answer = ask(http, messages, **options)
    assert 400 <= answer.status_code < 500, answer.text
    assert ask(http, good).status_code == 200
    error: dict[str, Any] = answer.json()["error"]
    assert error["code"] == answer.status_code
    return str(error["message"])


@pytest.fixture
def good(picture: bytes) -> object:
    return user(image_part(picture), "What is this?")


@pytest.mark.parametrize(
    "url",
    [
        "data:image/png;base64,!!!!",
        "data:image/png;base64," + base64.b64encode(b"not a picture").decode(),
        "data:image/png;base64,",
        "data:image/png,raw",
        "http://127.0.0.1:9/closed-port.png",
        "ftp://127.0.0.1/picture.png",
        "file:///etc/hostname",
    ],
)
def test_an_unreadable_image(http: httpx.Client, good: object, url: str) -> None:
    message = refusal(http, user(url_part(url), "What is this?"), good)
    assert message.startswith("An image of the request can't be read: ") and message.endswith(".")


def test_a_truncated_image(http: httpx.Client, good: object, picture: bytes) -> None:
    assert "cut short" in refusal(http, user(image_part(picture[:100]), "What is this?"), good)


def test_a_missing_file(http: httpx.Client, good: object, picture_folder: Path) -> None:
    missing = url_part((picture_folder / "missing.png").as_uri())
    assert "No such file" in refusal(http, user(missing, "What is this?"), good)


def test_no_image_server_is_allowed_by_default(http: httpx.Client, good: object) -> None:
    own = url_part(f"{http.base_url}/health")
    assert "this server fetches nothing" in refusal(http, user(own, "What is this?"), good)


def test_a_hundred_images(http: httpx.Client, good: object, picture: bytes) -> None:
    assert "At most 8 image" in refusal(http, user(*[image_part(picture)] * 100, "What are these?"), good)


def test_more_experts_than_the_server_allows(http: httpx.Client, good: object) -> None:
    message = refusal(http, good, good, mm_processor_kwargs={"routing": {"tail_experts": 5}})
    assert "this server allows up to 4" in message


def test_an_unknown_routing_number(http: httpx.Client, good: object) -> None:
    message = refusal(http, good, good, mm_processor_kwargs={"routing": {"text_experts": 1}})
    assert message == (
        "mm_processor_kwargs.routing.text_experts is not known: "
        "a request may choose tail_experts and head_experts."
    )


def test_a_task_for_a_policy_without_tasks(http: httpx.Client, good: object) -> None:
    message = refusal(http, good, good, vllm_xargs={"task": 1})
    assert message == "The routing policy in force has no tasks: leave vllm_xargs.task out."


def test_an_unknown_role(http: httpx.Client, good: object) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "wizard", "content": [text_part("Hi")]}]
    message = refusal(http, messages, good)
    assert message.startswith("messages[1].role is 'wizard'.") and message.endswith(".")


def test_ten_times_the_context(http: httpx.Client, good: object) -> None:
    limit = http.get("/v1/models").json()["data"][0]["max_model_len"]
    assert "maximum context length" in refusal(http, user("cat " * (10 * limit)), good)


def test_more_tokens_than_the_context(http: httpx.Client, good: object) -> None:
    assert "max_tokens" in refusal(http, good, good, max_tokens=10**6)


def test_a_body_that_is_not_json(http: httpx.Client, good: object) -> None:
    headers = {"Content-Type": "application/json"}
    answer = http.post("/v1/chat/completions", content=b'{"messages": [', headers=headers)
    assert answer.status_code == 400
    assert ask(http, good).status_code == 200


@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("/v1/chat/completions", {"stop": [""]}),
        ("/v1/chat/completions", {"temperature": 1e300}),
        ("/v1/chat/completions", {"min_tokens": 500}),
        ("/v1/chat/completions", {"logit_bias": {"99999999": 1}}),
        ("/v1/chat/completions", {"logprobs": True, "top_logprobs": 500, "stream": True}),
        ("/v1/chat/completions", {"structured_outputs": {"regex": "("}}),
        ("/v1/chat/completions", {"vllm_xargs": {"task": 1}}),
        ("/v1/chat/completions/batch", {"stop": [""]}),
        ("/tokenize", {}),
    ],
)
def test_the_next_request_with_the_same_picture_is_answered(
    http: httpx.Client, path: str, options: dict[str, Any]
) -> None:
    """vLLM believes that a picture was sent to the engine as soon as it is processed."""
    new = encoded(Image.effect_noise((24, 24), 50))
    messages = user(image_part(new), "What is this?")
    body = {"messages": [messages] if path.endswith("batch") else messages, "model": "prismoji", **options}
    assert http.post(path, json=body).status_code in (200, 400)
    assert ask(http, messages).status_code == 200


def test_a_picture_whose_tokens_are_counted_is_answered(http: httpx.Client) -> None:
    data = base64.b64encode(encoded(Image.effect_noise((24, 24), 50))).decode()
    source = {"type": "base64", "media_type": "image/png", "data": data}
    body = {"model": "prismoji", "messages": user({"type": "image", "source": source}, "What?")}
    assert http.post("/v1/messages/count_tokens", json=body).status_code == 200
    assert http.post("/v1/messages", json={**body, "max_tokens": 2}).status_code == 200


def test_what_is_wrong_with_an_option_is_one_sentence(http: httpx.Client, good: object) -> None:
    assert refusal(http, good, good, temperature="hot") == "temperature must be a number."
