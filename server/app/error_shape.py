"""The form of all errors: OpenAI's, or Anthropic's on Anthropic's routes."""

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
"""Anthropic's names of errors. Below 500 the others are invalid_request_error, and from 500 on api_error."""

ROUTER_MESSAGES = {
    HTTPStatus.NOT_FOUND: "This server has no such route. GET /openapi.json lists its routes.",
    HTTPStatus.METHOD_NOT_ALLOWED: "This route does not take this method: GET /openapi.json lists them.",
}
"""The messages for errors of Starlette's router, whose own messages are two or three words."""


class ErrorShape:
    """ASGI middleware that gives the JSON body of every error the same form."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on. Hold an error back until its body is complete, and send it in the right form."""
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
    """Make the app answer a body that vLLM's models refuse with a sentence, not with pydantic's list."""

    @app.exception_handler(RequestValidationError)
    async def answer(request: Request, error: RequestValidationError) -> JSONResponse:
        faults = [{**fault, "loc": fault["loc"][1:]} for fault in error.errors()]  # without "body"
        return _refused(sentence(faults, error.body))  # type: ignore[arg-type]  # FastAPI's are pydantic's

    @app.exception_handler(ValidationError)
    async def answer_in_batch(request: Request, error: ValidationError) -> JSONResponse:
        # vLLM makes a chat request of each conversation of a batch. Its errors name keys of that request.
        keys = [fault["loc"][0] for fault in error.errors() if fault["loc"]]
        return _refused(sentence(error.errors(), dict.fromkeys(keys)))


def _refused(message: str) -> JSONResponse:
    return JSONResponse({"detail": message}, HTTPStatus.BAD_REQUEST)


def _is_error(message: Message) -> bool:
    headers = dict(message.get("headers", ()))
    return message["status"] >= 400 and headers.get(b"content-type", b"").startswith(b"application/json")


def _shaped(path: str, status: int, body: bytes) -> bytes:
    answer: Any = json.loads(body)
    if not isinstance(answer, dict) or not answer.keys() & {"error", "detail"}:
        return body  # This is a probe's answer, not the error of a request.
    if "detail" in answer:
        message = str(answer["detail"])
        if message == HTTPStatus(status).phrase:
            message = ROUTER_MESSAGES.get(HTTPStatus(status), message)
        error = {"message": message, "type": HTTPStatus(status).phrase, "param": None, "code": status}
    else:
        error = answer["error"]
    error["message"] = _sentence(str(error["message"]))
    if path == ANTHROPIC or path.startswith(f"{ANTHROPIC}/"):
        default_type = "invalid_request_error" if status < 500 else "api_error"
        error_type = ANTHROPIC_TYPES.get(HTTPStatus(status), default_type)
        answer = {"type": "error", "error": {"type": error_type, "message": error["message"]}}
    else:
        answer = {"error": error}
    return json.dumps(answer).encode()


def _sentence(message: str) -> str:
    """Return vLLM's message as a sentence, without the names and values of its own code at the end."""
    sentence, separator, _ = message.rpartition(" (parameter=")
    sentence = (sentence if separator and message.endswith(")") else message).strip()
    return sentence if sentence.endswith((".", "!", "?")) else f"{sentence}."
