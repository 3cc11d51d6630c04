"""Refuses, with a sentence, what vLLM would take from a request and prismoe must not; counts the rest."""

import json
import re
from collections.abc import Iterator
from typing import Any

from fastapi import HTTPException
from starlette._utils import get_route_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prismoe.server.own_routing import ANSWERING, chooses_routing, task_fault, tasks

ROLES = ("system", "developer", "user", "assistant")
MOST_ANSWERS = 128
"""The most that OpenAI takes for `n`; here prompts of a list count, too."""

HALF_CHARACTER = re.compile(rb"\\u[dD][89a-fA-F]|\xed|\x00")
"""In JSON, an escape or a byte that may be of half a surrogate pair."""


class RequestGuard:
    """ASGI middleware: a request that `checked` or `task_fault` finds fault with is answered with 400.

    The app's state holds the `routing` in force, and counts the answered `requests`.
    It looks on as the app reads the body (which comes in one piece, see `BodyLimit`), so what the app does
    before that (authentication) comes first, and the app's own handler turns the refusal into an answer.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, with the guard at its body."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        state = scope["app"].state
        own_routing = False

        async def receive_and_check() -> Message:
            nonlocal own_routing
            message = await receive()
            if message["type"] == "http.request":
                request, fault = checked(message["body"])
                if fault := fault or task_fault(request, tasks(state.routing)):
                    raise HTTPException(400, fault)
                own_routing = chooses_routing(request)
            return message

        async def count_and_send(message: Message) -> None:
            is_answer = message["type"] == "http.response.start" and message["status"] < 400
            if is_answer and "prismoe.gone" not in scope:
                state.requests.add(own_routing)
            await send(message)

        answers = get_route_path(scope) in ANSWERING
        await self.app(scope, receive_and_check, count_and_send if answers else send)


def checked(body: bytes) -> tuple[dict[str, Any], str | None]:
    """A request, empty where it is no JSON object, and what is wrong with it; None where nothing is.

    Wrong are roles outside ROLES, which a chat template could pass over in silence; `media_io_kwargs`, with
    which vLLM trusts every client once it takes `mm_processor_kwargs`; an image's `uuid`, under which vLLM
    would cache it for all clients; and half characters, which no tokenizer takes.
    """
    try:
        request = json.loads(body)
        if HALF_CHARACTER.search(body):
            json.dumps(request, ensure_ascii=False).encode()
        return (request, _fault(request)) if isinstance(request, dict) else ({}, None)
    except UnicodeEncodeError:
        return {}, "The request has half of a surrogate pair, which is no character."
    except ValueError:
        return {}, None  # vLLM says what is wrong with it.
    except RecursionError:
        return {}, "The request's JSON is nested too deeply."


def _fault(request: dict[str, Any]) -> str | None:
    if request.get("media_io_kwargs"):
        return "media_io_kwargs is the operator's to set: leave it out of the request."
    if not isinstance(request.get("n"), int | None):
        return "n has to be a whole number."
    if (answers := _answers(request)) > MOST_ANSWERS:
        return f"The request asks for {answers} answers: the most is {MOST_ANSWERS}."
    for where, role in _roles(request.get("messages"), "messages"):
        if role not in ROLES:
            return f"{where}.role is {role!r}. The roles are: {', '.join(ROLES)}."
    if _names_an_image([request.get("messages"), request.get("input")]):
        return "An image's uuid would be shared with other clients: leave it out of the request."
    return None


def _answers(request: dict[str, Any]) -> int:
    """How many sequences a request starts: its prompts or conversations, each so often."""
    prompt, messages, times = request.get("prompt"), request.get("messages"), request.get("n")
    prompts = conversations = 1
    if isinstance(prompt, list) and not all(isinstance(item, int) for item in prompt):
        prompts = len(prompt)
    if isinstance(messages, list) and messages and all(isinstance(item, list) for item in messages):
        conversations = len(messages)
    return max(prompts, conversations) * (1 if times is None else times)


def _roles(messages: object, where: str) -> Iterator[tuple[str, object]]:
    """Every role that is given, and where. A batch request holds a list of conversations."""
    if isinstance(messages, list):
        for index, message in enumerate(messages):
            yield from _roles(message, f"{where}[{index}]")
    elif isinstance(messages, dict) and "role" in messages:
        yield where, messages["role"]


def _names_an_image(value: object) -> bool:
    """Whether a part of a message has a uuid."""
    if isinstance(value, dict):
        return value.get("uuid") is not None or _names_an_image(value.get("content"))
    return isinstance(value, list) and any(map(_names_an_image, value))
