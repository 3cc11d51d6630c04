"""Passes on only the checked content of a request, and counts the answered requests."""

from fastapi import HTTPException
from starlette._utils import get_route_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prismoe.server.requests.answer_text import continues
from prismoe.server.requests.bodies import Unreadable, read_request
from prismoe.server.requests.routing_choice import ANSWERING, chooses_routing, task_fault, tasks


class RequestGuard:
    """ASGI middleware that refuses a request with 400 if it can't be read or names an unknown task.

    It uses `served`, `routing` and the counter `requests` of the app's state. It checks the body when the app
    reads it (in one piece, see `BodyLimit`). So the app's earlier steps, such as authentication, come first,
    and the app's own handler turns the error into an answer.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and check its body when the app reads it."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        state, path = scope["app"].state, get_route_path(scope)
        chose_routing = False

        async def receive_and_read() -> Message:
            nonlocal chose_routing
            message = await receive()
            if message["type"] == "http.request":
                try:
                    request, message["body"] = read_request(path, message["body"], state.served)
                except Unreadable as error:
                    raise HTTPException(400, str(error)) from error
                if fault := task_fault(request, tasks(state.routing)):
                    raise HTTPException(400, fault)
                chose_routing = chooses_routing(request)
                continues.set(bool(request.get("continue_final_message")))
            return message

        async def count_and_send(message: Message) -> None:
            is_answer = message["type"] == "http.response.start" and message["status"] < 400
            if is_answer and "prismoe.gone" not in scope:
                state.requests.add(chose_routing)
            await send(message)

        await self.app(scope, receive_and_read, count_and_send if path in ANSWERING else send)
