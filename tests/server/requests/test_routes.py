"""The allow-list on a running server: every route parses its body, and a good request is answered."""

from typing import Any

import httpx
import pytest

from prismoe.server.requests.bodies import BODIES
from tests.server.conftest import image_part, user

IMAGE_PIL = {"type": "image_pil", "image_pil": "/etc/hostname"}


def bodies(part: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """A body for each route, with a part in its message."""
    messages = [{"role": "user", "content": [part]}]
    return {
        "/v1/chat/completions": {"messages": messages},
        "/v1/chat/completions/batch": {"messages": [messages, messages]},
        "/v1/routing/inspect": {"messages": messages, "max_tokens": 2},
        "/tokenize": {"messages": messages},
        "/v1/messages": {"messages": messages, "max_tokens": 2},
        "/v1/messages/count_tokens": {"messages": messages},
        "/v1/responses": {"input": messages},
        "/v1/completions": {"prompt": [part]},
        "/detokenize": {"tokens": [part]},
    }


def test_every_route_with_a_body_has_a_model(http: httpx.Client) -> None:
    paths: dict[str, dict[str, Any]] = http.get("/openapi.json").json()["paths"]
    assert {path for path, methods in paths.items() if "post" in methods} == set(BODIES)


@pytest.mark.parametrize("path", sorted(bodies(IMAGE_PIL)))
@pytest.mark.parametrize(
    "part", [IMAGE_PIL, {"image_pil": "/etc/hostname"}, True, {"author": {"role": "user"}}]
)
def test_unlisted_fields_are_refused_on_every_route(
    http: httpx.Client, path: str, part: dict[str, Any]
) -> None:
    answered = http.post(path, json={"model": "prismoji", **bodies(part)[path]})
    assert answered.status_code == 400, answered.text
    message: str = answered.json()["error"]["message"]
    assert message.endswith(".") and "\n" not in message


@pytest.mark.parametrize("path", ["/v1//chat/completions", "//v1/chat/completions", "/v1/chat//completions"])
def test_a_path_with_an_empty_part_is_not_a_route(http: httpx.Client, path: str) -> None:
    body = {"model": "prismoji", "messages": user("Hi")}
    answered = http.post(f"http://{http.base_url.netloc.decode()}{path}", json=body)
    assert answered.status_code == 404
    assert answered.json()["error"] == {
        "message": "This server has no such route. GET /openapi.json lists its routes.",
        "type": "Not Found",
        "param": None,
        "code": 404,
    }


def test_a_picture_is_answered_on_every_route(http: httpx.Client, picture: bytes) -> None:
    part = image_part(picture)
    data = str(part["image_url"]["url"]).partition(",")[2]  # type: ignore[index]
    source = {"type": "base64", "media_type": "image/png", "data": data}
    listed = bodies(part)
    listed |= {"/v1/completions": {"prompt": "Hi"}, "/detokenize": {"tokens": [5, 6]}}
    for path in ("/v1/messages", "/v1/messages/count_tokens"):
        listed[path]["messages"] = user({"type": "image", "source": source})
    listed["/v1/responses"]["input"] = user({"type": "input_image", "image_url": part["image_url"]["url"]})  # type: ignore[index]
    for path, body in listed.items():
        answered = http.post(path, json={"model": "prismoji", **body})
        assert answered.status_code == 200, (path, answered.text)
