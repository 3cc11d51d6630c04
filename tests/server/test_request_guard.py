"""The guard of requests, without an engine."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Body, FastAPI
from prometheus_client import CollectorRegistry

from prismoe.server.limits.body import BodyLimit
from prismoe.server.limits.settings import LimitSettings
from prismoe.server.own_routing import RequestCounter, task_fault, tasks
from prismoe.server.request_guard import ROLES, RequestGuard, checked
from prismoe.server.routes import LayerRouting, RoutingInForce

TOO_DEEP = "The request's JSON is nested too deeply."

app = FastAPI()
app.add_middleware(RequestGuard)
app.add_middleware(BodyLimit, settings=LimitSettings.model_validate({}))


@app.post("/chat")
@app.post("/v1/chat/completions")
async def echo(filler: Annotated[str, Body(embed=True)]) -> dict[str, int]:
    return {"filler": len(filler)}


def routing(*policies: dict[str, Any]) -> RoutingInForce:
    layers = [
        LayerRouting(layer=layer, experts=4, policy=policy, sources={})
        for layer, policy in enumerate(policies)
    ]
    return RoutingInForce(source="checkpoint", layers=layers)


BY_TASKS = routing({"policy": "topk"}, {"policy": "task", "tasks": 4}, {"policy": "task", "tasks": 3})


@pytest.fixture(autouse=True)
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    app.state.routing, app.state.requests = BY_TASKS, RequestCounter(registry, "model")
    return registry


def post(body: dict[str, Any], path: str = "/chat") -> httpx.Response:
    """Ask the guarded app, with the body in several pieces."""

    async def pieces() -> AsyncIterator[bytes]:
        text = json.dumps(body).encode()
        for start in range(0, len(text), 1000):
            yield text[start : start + 1000]

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
            headers = {"Content-Type": "application/json; charset=utf-8"}
            return await client.post(path, content=pieces(), headers=headers)

    return asyncio.run(ask())


def refusal(body: bytes) -> str | None:
    return checked(body)[1]


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
        {"prompt": [], "messages": [], "n": None},
    ],
)
def test_as_many_answers_as_the_limit_are_left_to_vllm(request_: dict[str, Any]) -> None:
    assert refusal(json.dumps(request_).encode()) is None


@pytest.mark.parametrize("times", ["1000", 1000.0, [1000], {}])
def test_a_number_of_answers_that_is_none_is_refused(times: object) -> None:
    """vLLM would read "1000" as 1000."""
    assert refusal(json.dumps({"prompt": "Hi", "n": times}).encode()) == "n has to be a whole number."


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
    for body in (
        rb'{"prompt": "\ud83d"}',
        b'{"prompt": "\xed\xa0\xbd"}',
        '{"prompt": "\\ud83d"}'.encode("utf-16"),
    ):
        assert "half of a surrogate pair" in str(refusal(body))
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


@pytest.mark.parametrize("task", [-1, 3, 1.0, "1", True, [1]])
def test_a_task_that_is_none_is_refused(task: Any) -> None:
    answer = post({**messages("user"), "vllm_xargs": {"task": task}})
    assert answer.status_code == 400
    assert answer.json()["detail"] == f"vllm_xargs.task is {task!r}: give a whole number from 0 to 2."


def test_a_task_that_every_layer_knows_is_taken() -> None:
    for task in (0, 1, 2):
        assert post({**messages("user"), "vllm_xargs": {"task": task, "other": 9}}).status_code == 200


def test_a_task_needs_a_policy_that_knows_tasks() -> None:
    assert tasks(routing({"policy": "ltdr"})) == 0
    fault = task_fault({"vllm_xargs": {"task": 0}}, 0)
    assert fault == "The routing policy in force knows no tasks: leave vllm_xargs.task out."
    assert task_fault({"vllm_xargs": {"session_id": "a"}}, 0) is None


def test_answered_requests_are_counted_by_who_chose_the_routing(registry: CollectorRegistry) -> None:
    def counted(routing: str) -> float | None:
        return registry.get_sample_value(
            "prismoe_requests_total", {"routing": routing, "model_name": "model"}
        )

    chat = "/v1/chat/completions"
    assert (counted("default"), counted("request")) == (0, 0)
    for plain in (
        {},
        {"mm_processor_kwargs": {}},
        {"mm_processor_kwargs": {"routing": {}}},
        {"vllm_xargs": 1},
    ):
        post({**messages("user"), **plain}, chat)
    assert (counted("default"), counted("request")) == (4, 0)
    for own in ({"vllm_xargs": {"task": 0}}, {"mm_processor_kwargs": {"routing": {"tail_experts": 2}}}):
        post({**messages("user"), **own}, chat)
    post(messages("user"))  # a path that answers nothing
    post(messages("wizard"), chat)  # refused
    post({"messages": []}, chat)  # fails
    assert (counted("default"), counted("request")) == (4, 2)
