"""Passes on of a request only what `bodies` read of it, and counts the answered ones."""

from fastapi import HTTPException
from starlette._utils import get_route_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prismoe.server.requests.answer_text import continues
from prismoe.server.requests.bodies import Unreadable, read_request
from prismoe.server.requests.routing_choice import ANSWERING, chooses_routing, task_fault, tasks


class RequestGuard:
    """ASGI middleware: a request that can't be read, or names a task that is none, is answered with 400.

    The app's state holds what is `served` and the `routing` in force, and counts the
    answered `requests`. The guard looks on as the app reads the body (which comes in one piece, see
    `BodyLimit`), so what the app does before that (authentication) comes first, and the app's own handler
    turns the refusal into an answer.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, with the guard at its body."""
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
