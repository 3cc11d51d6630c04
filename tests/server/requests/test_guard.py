"""The guard of requests, without an engine."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Body, FastAPI, Request
from prometheus_client import CollectorRegistry

from prismoe.server.limits.body import BodyLimit
from prismoe.server.limits.settings import LimitSettings
from prismoe.server.metrics.routes import ServedRouting
from prismoe.server.requests.guard import RequestGuard
from prismoe.server.requests.models import Served
from prismoe.server.requests.routing_choice import RequestCounter, task_fault, tasks
from tests.server.fake_engine import routing

app = FastAPI()
app.add_middleware(RequestGuard)
app.add_middleware(BodyLimit, settings=LimitSettings.model_validate({}))


@app.post("/tokenize")
@app.post("/v1/chat/completions")
async def echo(filler: Annotated[str, Body(embed=True)], request: Request) -> dict[str, int]:
    app.state.got = await request.body()
    return {"filler": len(filler)}


def by_policies(*policies: dict[str, Any]) -> ServedRouting:
    return routing(*range(len(policies)), policies=policies)


BY_TASKS = by_policies({"policy": "topk"}, {"policy": "task", "tasks": 4}, {"policy": "task", "tasks": 3})


@pytest.fixture(autouse=True)
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    app.state.routing, app.state.requests = BY_TASKS, RequestCounter(registry, "model")
    app.state.served = Served(frozenset({"image"}), images_choose_routing=True)
    return registry


def post(body: dict[str, Any], path: str = "/tokenize") -> httpx.Response:
    """Send the body to the guarded app in several pieces."""

    async def pieces() -> AsyncIterator[bytes]:
        text = json.dumps(body).encode()
        for start in range(0, len(text), 1000):
            yield text[start : start + 1000]

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
            headers = {"Content-Type": "application/json; charset=utf-8"}
            return await client.post(path, content=pieces(), headers=headers)

    return asyncio.run(ask())


def messages(*roles: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": "Hi"} for role in roles], "filler": "x" * 5000}


def test_the_app_gets_the_whole_body() -> None:
    answer = post(messages("system", "developer", "user", "assistant"))
    assert answer.status_code == 200 and answer.json() == {"filler": 5000}


def test_the_guard_answers_a_refusal() -> None:
    answer = post(messages("wizard"))
    assert answer.status_code == 400 and "wizard" in answer.json()["detail"]


def test_the_app_gets_only_listed_fields() -> None:
    message = {"role": "user", "content": "Hi", "author": {"role": "user"}, "image_pil": "/etc/hostname"}
    answer = post({"messages": [message], "filler": "", "unknown": 1}, "/v1/chat/completions")
    assert answer.json() == {"filler": 0}
    assert json.loads(app.state.got) == {
        "messages": [{"role": "user", "content": "Hi"}],
        "filler": "",
        "unknown": 1,
    }


@pytest.mark.parametrize("content_type", ["Application/JSON", "application/json; charset=utf-8"])
def test_a_content_type_does_not_bypass_the_guard(content_type: str) -> None:
    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
            body = json.dumps(messages("wizard")).encode()
            return await client.post("/tokenize", content=body, headers={"Content-Type": content_type})

    assert asyncio.run(ask()).status_code == 400


@pytest.mark.parametrize("task", [-1, 3, 1.0, "1", True, [1]])
def test_a_wrong_task_is_refused(task: Any) -> None:
    answer = post({**messages("user"), "vllm_xargs": {"task": task}})
    assert answer.status_code == 400
    assert answer.json()["detail"] == f"vllm_xargs.task is {task!r}: give a whole number from 0 to 2."


def test_a_task_that_every_layer_has_is_accepted() -> None:
    for task in (0, 1, 2):
        assert post({**messages("user"), "vllm_xargs": {"task": task, "other": 9}}).status_code == 200


def test_a_task_needs_a_policy_with_tasks() -> None:
    assert tasks(by_policies({"policy": "native"})) == tasks(routing()) == 0
    fault = task_fault({"vllm_xargs": {"task": 0}}, 0)
    assert fault == "The routing policy in force has no tasks: leave vllm_xargs.task out."
    assert task_fault({"vllm_xargs": {"session_id": "a"}}, 0) is None


def test_answered_requests_are_counted_by_the_source_of_their_routing(registry: CollectorRegistry) -> None:
    def counted(routing: str) -> float | None:
        return registry.get_sample_value(
            "prismoe_requests_total", {"routing": routing, "model_name": "model"}
        )

    chat = "/v1/chat/completions"
    assert (counted("default"), counted("request")) == (0, 0)
    plain: dict[str, Any]
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
    post(messages("user"))  # a path without an answer
    post(messages("wizard"), chat)  # refused
    post({**messages("user"), "filler": 3}, chat)  # fails
    assert (counted("default"), counted("request")) == (4, 2)
