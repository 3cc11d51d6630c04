"""Refusals: the OpenAI errors with which prismoe answers requests that it does not pass on to vLLM."""

import json
from dataclasses import dataclass
from http import HTTPStatus

from prometheus_client import CollectorRegistry, Counter
from starlette.types import Scope, Send

REASONS = ("key", "role", "draining", "busy", "key_busy", "memory", "body_size", "body_time")


@dataclass(frozen=True)
class Refusal:
    """Why a request is refused. If the refusal is counted, `reason` is one of REASONS."""

    status: HTTPStatus
    reason: str
    message: str
    retry_after: int | None = None
    """After how many seconds the client may try again."""

    @property
    def body(self) -> bytes:
        """The JSON body of the error, in the form of vLLM's errors."""
        error = {
            "message": self.message,
            "type": self.status.phrase,
            "param": None,
            "code": self.status.value,
        }
        return json.dumps({"error": error}).encode()


class RefusalCounter:
    """Counts refusals by reason."""

    def __init__(self, registry: CollectorRegistry, model_name: str) -> None:
        self._counter = Counter(
            "prismoe_refused_requests",
            "Requests that prismoe refused or cut, by reason.",
            ["model_name", "reason"],
            registry=registry,
        )
        self._model_name = model_name
        for reason in REASONS:
            self._counter.labels(model_name, reason)

    def add(self, refusal: Refusal) -> None:
        """Count a refusal."""
        self._counter.labels(self._model_name, refusal.reason).inc()


async def refuse(refusal: Refusal, scope: Scope, send: Send) -> None:
    """Answer a request with a refusal, and store the refusal in the request's scope for the log."""
    scope["prismoe.refusal"] = refusal
    if scope["type"] != "http":
        await send({"type": "websocket.close", "code": 1008, "reason": refusal.message})
        return
    body = refusal.body
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if refusal.retry_after is not None:
        headers.append((b"retry-after", str(refusal.retry_after).encode()))
    if refusal.status is HTTPStatus.UNAUTHORIZED:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": refusal.status.value, "headers": headers})
    await send({"type": "http.response.body", "body": body})
