"""The guard of requests, without an engine."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from prismoe.server.request_guard import ROLES, RequestGuard, refusal

TOO_DEEP = "The request's JSON is nested too deeply."

app = FastAPI()
app.add_middleware(RequestGuard)


@app.post("/chat")
async def echo(body: dict[str, Any]) -> dict[str, int]:
    return {"filler": len(body["filler"])}


def post(body: dict[str, Any]) -> httpx.Response:
    """Ask the guarded app, with the body in several pieces."""

    async def pieces() -> AsyncIterator[bytes]:
        text = json.dumps(body).encode()
        for start in range(0, len(text), 1000):
            yield text[start : start + 1000]

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
            headers = {"Content-Type": "application/json; charset=utf-8"}
            return await client.post("/chat", content=pieces(), headers=headers)

    return asyncio.run(ask())


def messages(*roles: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": "Hi"} for role in roles], "filler": "x" * 5000}


@pytest.mark.parametrize("role", ["wizard", "User", "", None, 3, ["user"], {"user": 1}])
def test_other_roles_are_refused(role: Any) -> None:
    fault = refusal(json.dumps(messages("user", role)).encode())
    assert fault is not None and fault.startswith(f"messages[1].role is {role!r}. The roles are: system, ")


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"messages": 3}', b'{"messages": [3]}', b'{"prompt": "Hi"}', b"\xff"]
)
def test_what_is_no_chat_is_left_to_vllm(body: bytes) -> None:
    assert refusal(body) is None


def test_every_conversation_of_a_batch_is_looked_at() -> None:
    batch = {"messages": [messages("user")["messages"], messages("user", "wizard")["messages"]]}
    fault = refusal(json.dumps(batch).encode())
    assert fault is not None and fault.startswith("messages[1][1].role is")


def test_a_request_may_not_say_how_media_are_read() -> None:
    fault = refusal(json.dumps({**messages("user"), "media_io_kwargs": {"image": {"size": 9}}}).encode())
    assert fault is not None and fault.startswith("media_io_kwargs is the operator's to set")


def test_the_app_gets_the_whole_body() -> None:
    answer = post(messages(*ROLES))
    assert answer.status_code == 200 and answer.json() == {"filler": 5000}


def test_the_app_answers_the_refusal() -> None:
    answer = post(messages("wizard"))
    assert answer.status_code == 400 and "wizard" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("request_", "answers"),
    [
        ({"prompt": "Hi", "n": 129}, 129),
        ({"prompt": ["Hi"] * 65, "n": 2}, 130),
        ({"prompt": [[1, 2]] * 129}, 129),
        ({"messages": [[{"role": "user", "content": "Hi"}]] * 43, "n": 3}, 129),
        ({"prompt": ["Hi"], "messages": [[{"role": "user", "content": "Hi"}]] * 129}, 129),
        ({**messages("user"), "n": 10**9}, 10**9),
    ],
)
def test_more_answers_than_the_limit_are_refused(request_: dict[str, Any], answers: int) -> None:
    assert (
        refusal(json.dumps(request_).encode()) == f"The request asks for {answers} answers: the most is 128."
    )


@pytest.mark.parametrize(
    "request_",
    [
        {"prompt": [1] * 1000},
        {"prompt": ["Hi"] * 64, "n": 2},
        {**messages(*["user"] * 300), "n": None},
        {"prompt": [], "messages": [], "n": "many"},
    ],
)
def test_as_many_answers_as_the_limit_are_left_to_vllm(request_: dict[str, Any]) -> None:
    assert refusal(json.dumps(request_).encode()) is None


def test_json_that_is_nested_too_deeply_is_refused() -> None:
    assert refusal(b"[" * 100_000) == "The request's JSON is nested too deeply."


def test_no_content_type_passes_the_guard_by() -> None:
    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
            body = json.dumps(messages("wizard")).encode()
            return await client.post("/chat", content=body, headers={"Content-Type": "Application/JSON"})


def test_an_image_may_not_be_shared_under_a_name() -> None:
    part = {"type": "image_url", "image_url": {"url": "data:,"}, "uuid": "mine"}
    conversation = [{"role": "user", "content": [part]}]
    for request in ({"messages": conversation}, {"messages": [conversation]}, {"input": conversation}):
        assert "leave it out of the request" in str(refusal(json.dumps(request).encode()))
    assert refusal(json.dumps({"messages": [{"role": "user", "content": "uuid"}]}).encode()) is None


def test_half_characters_are_refused() -> None:
    assert "half of a surrogate pair" in str(refusal(rb'{"prompt": "\ud83d"}'))
    assert refusal(rb'{"prompt": "\ud83d\ude00"}') is None


def test_towers_of_brackets_are_refused() -> None:
    assert refusal(b'{"a":' * 100_000 + b"1" + b"}" * 100_000) == TOO_DEEP
    for depth in range(700, 1100, 10):
        assert refusal(b'{"messages": ' + b"[" * depth + b"]" * depth + b"}") in (None, TOO_DEEP)


@pytest.mark.parametrize("content_type", ["Application/JSON", "application/json; charset=utf-8"])
def test_a_content_type_is_no_way_around(content_type: str) -> None:
    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
            body = json.dumps(messages("wizard")).encode()
            return await client.post("/chat", content=body, headers={"Content-Type": content_type})

    assert asyncio.run(ask()).status_code == 400
