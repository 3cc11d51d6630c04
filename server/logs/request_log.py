"""The request log: a line for each request, with its key, route, status, time and numbers of tokens.

A line has no text of the request or its answer. It has no number of tail tokens, because the device counts
these for all requests together.
"""

import logging
import re
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from starlette._utils import get_route_path
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from vllm.engine.protocol import EngineClient
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.metrics.stats import RequestStateStats

from prismoe.model_plugins.vllm_seams.engine.vision_chunks import tells_media
from prismoe.model_plugins.vllm_seams.front.answers import tell_answers
from prismoe.server.access.routes import METRICS, is_open, route_label
from prismoe.server.logs.error_log import begin_request
from prismoe.server.refusal import RefusalCounter

logger = logging.getLogger("vllm.prismoe.requests")

REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
GONE = 499
"""The status of a request whose client closed the connection before the answer began. nginx uses it, too."""
FAULT = "The server failed on this request: its log has the error, under the request's id."


@dataclass
class Tokens:
    """A request's tokens. vLLM updates `stats`, one entry for each answer of the request, as it runs."""

    prompt: Counter[str] = field(default_factory=Counter)
    """The number of the prompt's tokens, by modality."""
    stats: list[RequestStateStats] = field(default_factory=list)

    def add(
        self,
        request: EngineCoreRequest,
        first: bool,
        stats: RequestStateStats | None,
        medium: Callable[[Sequence[int], Any], str],
    ) -> None:
        """Add an answer that the engine starts. The prompt is counted only for a request's `first` answer.

        `medium` is the function that `tells_media` returns for the model.
        """
        if first:
            prompt = request.prompt_token_ids or ()
            self.prompt["text"] += len(prompt)
            for feature in request.mm_features or ():
                tokens = feature.mm_position.get_num_embeds()  # Markers between these tokens are text.
                self.prompt[medium(prompt, feature)] += tokens
                self.prompt["text"] -= tokens
        if stats is not None:
            self.stats.append(stats)

    def fields(self) -> dict[str, Any]:
        """Return the line's fields about tokens, and the times until the engine began and answered."""
        if not self.prompt.total():
            return {}
        fields: dict[str, Any] = {f"{modality}_tokens": count for modality, count in self.prompt.items()}
        if self.stats:
            fields["answer_tokens"] = sum(stats.num_generation_tokens for stats in self.stats)
            first = self.stats[0]
            if first.scheduled_ts:
                fields["queued_s"] = round(first.scheduled_ts - first.queued_ts, 4)
            if first.first_token_latency:
                fields["first_token_s"] = round(first.first_token_latency, 4)
        return fields


_tokens: ContextVar[Tokens] = ContextVar("prismoe_tokens")


def count_tokens(engine: EngineClient) -> None:
    """Count the tokens of each answer that vLLM's engine starts."""
    medium = tells_media(engine.model_config)

    def count(request: EngineCoreRequest, index: int, state: Any) -> None:
        if tokens := _tokens.get(None):
            tokens.add(request, index == 0, state.stats, medium)

    tell_answers(engine, count)


class RequestLog:
    """ASGI middleware that gives each request an id, and logs a line when the request is over.

    The id is the client's X-Request-Id if it is short and plain, and otherwise a new one. vLLM's own log uses
    it, and the answer has it as a header. `scope["prismoe.answer"]` gets the message that starts the answer.
    """

    def __init__(self, app: ASGIApp, refusals: RefusalCounter) -> None:
        self._app = app
        self._refusals = refusals

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and log its line when it is over."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = take_request_id(scope)
        tokens = Tokens()
        _tokens.set(tokens)
        begin_request(request_id.decode())
        start, status = time.monotonic(), GONE

        async def receive_and_note() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect" and status == GONE:
                scope["prismoe.gone"] = True  # vLLM then sends an empty answer with status 200.
            return message

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start" and "prismoe.gone" not in scope:
                status = message["status"]
                scope["prismoe.answer"] = message
                message["headers"] = with_request_id(message.get("headers", ()), request_id)
            await send(message)

        try:
            await self._app(scope, receive_and_note, send_and_note)
        except Exception:
            if status == GONE:  # No answer has begun. uvicorn's own answer would have no request id.
                await _fault()(scope, receive, send_and_note)
            status = 500
            raise
        finally:
            if refusal := scope.get("prismoe.refusal"):
                self._refusals.add(refusal)
            path = get_route_path(scope)
            if not is_open(path) and (path != METRICS or status >= 400):
                _write(scope, path, status, request_id.decode(), time.monotonic() - start, tokens)


def _fault() -> JSONResponse:
    error = {"message": FAULT, "type": "Internal Server Error", "param": None, "code": 500}
    return JSONResponse({"error": error}, 500)


def take_request_id(scope: Scope) -> bytes:
    """Return the id of a request, and make it the request's only X-Request-Id header."""
    given = [value for name, value in scope["headers"] if name == b"x-request-id"]
    usable = len(given) == 1 and REQUEST_ID.fullmatch(given[0].decode("latin-1"))
    request_id = given[0] if usable else uuid.uuid4().hex.encode()
    scope["headers"] = with_request_id(scope["headers"], request_id)
    return request_id


def with_request_id(headers: Iterable[tuple[bytes, bytes]], request_id: bytes) -> list[tuple[bytes, bytes]]:
    """Return the headers with this X-Request-Id and no other.

    vLLM's --enable-request-id-headers, for example, adds one of its own.
    """
    others = [(name, value) for name, value in headers if name.lower() != b"x-request-id"]
    return [*others, (b"x-request-id", request_id)]


def _write(scope: Scope, path: str, status: int, request_id: str, seconds: float, tokens: Tokens) -> None:
    key, refusal = scope.get("prismoe.key"), scope.get("prismoe.refusal")
    fields: dict[str, Any] = {
        "method": scope["method"] if scope["method"].isalpha() else "?",
        "route": route_label(path),
        "status": status,
        "seconds": round(seconds, 4),
        "request_id": request_id,
        **({} if key is None else {"key": key.name}),
        **({} if refusal is None else {"refused": refusal.reason}),
        **tokens.fields(),
    }
    line = " ".join(f"{name}={value}" for name, value in fields.items())
    # vLLM's JSON format writes `extra` as separate fields.
    logger.info("request %s", line, extra=fields)
