"""Every error has one shape: OpenAI's, or Anthropic's on its routes."""

import json
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette._utils import get_route_path
from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prismoe.server.requests.errors import sentence

ANTHROPIC = "/v1/messages"

ANTHROPIC_TYPES = {
    HTTPStatus.BAD_REQUEST: "invalid_request_error",
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.NOT_FOUND: "not_found_error",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "request_too_large",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
    HTTPStatus.SERVICE_UNAVAILABLE: "overloaded_error",
}
"""Anthropic's names of errors. Other client's errors are invalid_request_error, other servers' api_error."""

OF_THE_ROUTER = {
    HTTPStatus.NOT_FOUND: "This server has no such route. GET /openapi.json lists those that it has.",
    HTTPStatus.METHOD_NOT_ALLOWED: "This route does not take this method.",
}
"""What Starlette says in two words."""


class ErrorShape:
    """ASGI middleware that writes the JSON body of an error anew, whoever wrote it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and keep back an error until its body is whole."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start: Message | None = None
        body = bytearray()

        async def send_in_shape(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start" and _is_error(message):
                start = message
            elif start is None:
                await send(message)
            else:
                body.extend(message.get("body", b""))
                if not message.get("more_body", False):
                    shaped = _shaped(get_route_path(scope), start["status"], bytes(body))
                    MutableHeaders(scope=start)["content-length"] = str(len(shaped))
                    await send(start)
                    await send({"type": "http.response.body", "body": shaped})

        await self._app(scope, receive, send_in_shape)


def tell_validation_errors(app: FastAPI) -> None:
    """Have the app answer what vLLM's models find wrong by one sentence, not by pydantic's list."""

    @app.exception_handler(RequestValidationError)
    async def tell(request: Request, error: RequestValidationError) -> JSONResponse:
        faults = [{**fault, "loc": fault["loc"][1:]} for fault in error.errors()]  # without "body"
        return _refused(sentence(faults, error.body))  # type: ignore[arg-type]  # FastAPI's are pydantic's

    @app.exception_handler(ValidationError)
    async def tell_inner(request: Request, error: ValidationError) -> JSONResponse:
        # vLLM makes a chat request out of each conversation of a batch, whose faults are of single keys.
        keys = [fault["loc"][0] for fault in error.errors() if fault["loc"]]
        return _refused(sentence(error.errors(), dict.fromkeys(keys)))


def _refused(message: str) -> JSONResponse:
    return JSONResponse({"detail": message}, HTTPStatus.BAD_REQUEST)


def _is_error(message: Message) -> bool:
    headers = dict(message.get("headers", ()))
    return message["status"] >= 400 and headers.get(b"content-type", b"").startswith(b"application/json")


def _shaped(path: str, status: int, body: bytes) -> bytes:
    told: Any = json.loads(body)
    if not isinstance(told, dict) or not told.keys() & {"error", "detail"}:
        return body  # A probe's, which is no error of a request.
    if "detail" in told:
        default = {"message": str(told["detail"]), "type": HTTPStatus(status).phrase}
        error = {**default, "param": None, "code": status}
        if told["detail"] == HTTPStatus(status).phrase:
            error["message"] = OF_THE_ROUTER.get(HTTPStatus(status), f"{told['detail']}.")
    else:
        error = told["error"]
    error["message"] = _sentence(str(error["message"]))
    if path == ANTHROPIC or path.startswith(f"{ANTHROPIC}/"):
        other = "invalid_request_error" if status < 500 else "api_error"
        kind = ANTHROPIC_TYPES.get(HTTPStatus(status), other)
        told = {"type": "error", "error": {"type": kind, "message": error["message"]}}
    else:
        told = {"error": error}
    return json.dumps(told).encode()


def _sentence(message: str) -> str:
    """vLLM's message without what it puts behind: the names and values of its own code."""
    sentence, behind, _ = message.rpartition(" (parameter=")
    sentence = (sentence if behind and message.endswith(")") else message).strip()
    return sentence if sentence.endswith((".", "!", "?")) else f"{sentence}."
