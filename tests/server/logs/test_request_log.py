"""The log line of a request, without an engine."""

import asyncio
import contextlib
import logging
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from vllm.entrypoints.serve.middleware.x_request_id import XRequestIdMiddleware

from prismoe.model_plugins.vllm_seams.engine import vision_chunks
from prismoe.model_plugins.vllm_seams.engine.vision_chunks import ARCHITECTURE, tells_media
from prismoe.server.access.keys import Key, Role
from prismoe.server.health.running_requests import DRAINING
from prismoe.server.logs.request_log import RequestLog, Tokens, _tokens
from prismoe.server.refusal import RefusalCounter, refuse


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    scope["prismoe.key"] = Key("alice", Role.CLIENT, "")
    if scope["path"] == "/v1/models":
        raise RuntimeError("a fault")
    if scope["path"] == "/gone":
        return
    if scope["path"] == "/v1/completions":
        await refuse(DRAINING, scope, send)
        return
    tokens = _tokens.get()
    tokens.prompt.update(text=9, image=64)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": dict(scope["headers"])[b"x-request-id"]})


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[logging.LogRecord]:
    written: list[logging.LogRecord] = []
    monkeypatch.setattr(logging.getLogger("vllm.prismoe.requests"), "handle", written.append)
    logging.getLogger("vllm.prismoe.requests").setLevel(logging.INFO)
    return written


def ask(path: str, *ids: str, registry: CollectorRegistry | None = None) -> tuple[dict[bytes, bytes], bytes]:
    """The answer's headers and body."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"x-request-id", value.encode()) for value in ids]
    scope: Scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
    log = RequestLog(app, RefusalCounter(registry or CollectorRegistry(), "prismoji"))
    asyncio.run(log(scope, None, send))  # type: ignore[arg-type]
    return (dict(sent[0]["headers"]), sent[1]["body"]) if sent else ({}, b"")


def answered_ids(app: ASGIApp) -> list[bytes]:
    """All X-Request-Ids in the answer to a request with the id "mine"."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"x-request-id", b"mine")]
    scope: Scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers}
    with contextlib.suppress(RuntimeError):
        asyncio.run(RequestLog(app, RefusalCounter(CollectorRegistry(), "m"))(scope, None, send))  # type: ignore[arg-type]
    return [value for name, value in sent[0]["headers"] if name.lower() == b"x-request-id"]


def fields(record: logging.LogRecord, *names: str) -> list[Any]:
    return [getattr(record, name) for name in names]


def test_a_line_has_the_key_and_the_cost(lines: list[logging.LogRecord]) -> None:
    ask("/v1/chat/completions", "req-1")
    names = ("key", "method", "route", "status", "request_id", "text_tokens", "image_tokens")
    assert fields(lines[0], *names) == ["alice", "POST", "/v1/chat/completions", 200, "req-1", 9, 64]
    assert "key=alice" in lines[0].getMessage() and lines[0].seconds >= 0  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", ["/livez", "/inspector/main.js", "/metrics"])
def test_probes_pages_and_scrapes_have_no_line(lines: list[logging.LogRecord], path: str) -> None:
    ask(path)
    assert lines == []


def test_a_path_cannot_fake_a_line(lines: list[logging.LogRecord]) -> None:
    ask("/v1/models\nrequest key=bob status=200")
    assert fields(lines[0], "route") == ["other"] and "\n" not in lines[0].getMessage()


def test_a_refusal_is_named_and_counted(lines: list[logging.LogRecord]) -> None:
    registry = CollectorRegistry()
    ask("/v1/completions", registry=registry)
    assert fields(lines[0], "status", "refused") == [503, "draining"]
    name = "prismoe_refused_requests_total"
    for reason, times in (("draining", 1), ("key", 0)):
        labels = {"model_name": "prismoji", "reason": reason}
        assert registry.get_sample_value(name, labels) == times


def test_faults_and_aborted_requests_have_a_status(lines: list[logging.LogRecord]) -> None:
    with pytest.raises(RuntimeError):
        ask("/v1/models")
    ask("/gone")
    assert [record.status for record in lines] == [500, 499]  # type: ignore[attr-defined]


def test_an_answer_after_the_client_left_is_not_an_answer(lines: list[logging.LogRecord]) -> None:
    """vLLM answers a client that left with 200 and no body."""
    scope: Scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []}

    async def answers_nobody(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        pass

    log = RequestLog(answers_nobody, RefusalCounter(CollectorRegistry(), "prismoji"))
    asyncio.run(log(scope, receive, send))
    assert fields(lines[0], "status") == [499] and scope["prismoe.gone"]


@pytest.mark.parametrize("given", [(), ("",), ("a b",), ("x" * 65,), ("a\nb",), ("a", "b"), ("é",)])
def test_an_invalid_id_is_replaced(lines: list[logging.LogRecord], given: tuple[str, ...]) -> None:
    headers, seen = ask("/v1/chat/completions", *given)
    assert len(headers[b"x-request-id"]) == 32 and headers[b"x-request-id"] == seen


def test_a_valid_id_is_kept(lines: list[logging.LogRecord]) -> None:
    headers, seen = ask("/v1/chat/completions", "0af7:req.1_2-3")
    assert headers[b"x-request-id"] == seen == b"0af7:req.1_2-3"


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"x-request-id", b"mine")],
        [(b"X-Request-Id", b"other")],
        [(b"x-request-id", b"a"), (b"content-type", b"text/plain"), (b"x-request-id", b"b")],
    ],
)
def test_an_answer_has_one_id_even_if_the_app_adds_some(headers: list[tuple[bytes, bytes]]) -> None:
    async def with_headers(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    assert answered_ids(with_headers) == [b"mine"]


def test_the_answer_of_vllms_own_middleware_has_one_id() -> None:
    assert answered_ids(XRequestIdMiddleware(app)) == [b"mine"]


def test_a_refusal_and_a_fault_have_one_id() -> None:
    async def refuses(scope: Scope, receive: Receive, send: Send) -> None:
        await refuse(DRAINING, scope, send)

    async def fails(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("a fault")

    assert answered_ids(refuses) == answered_ids(fails) == [b"mine"]


def test_the_prompt_of_several_answers_counts_once() -> None:
    import torch
    from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange
    from vllm.v1.metrics.stats import RequestStateStats

    image = MultiModalFeatureSpec(None, "image", "one", PlaceholderRange(offset=1, length=32))
    has_embedding = torch.tensor([True, True, False, True])  # a timestamp between a video's frames
    video = MultiModalFeatureSpec(None, "video", "two", PlaceholderRange(40, 4, has_embedding))
    request: Any = SimpleNamespace(mm_features=[image, image, video], prompt_token_ids=list(range(79)))
    tokens = Tokens()
    for index in range(3):
        stats = RequestStateStats(
            num_generation_tokens=5, queued_ts=1.0, scheduled_ts=1.5, first_token_latency=0.75
        )
        tokens.add(request, index == 0, stats, tells_media(SimpleNamespace(architecture="Some")))  # type: ignore[arg-type]
    assert tokens.fields() == {
        "text_tokens": 12,
        "image_tokens": 64,
        "video_tokens": 3,
        "answer_tokens": 15,
        "queued_s": 0.5,
        "first_token_s": 0.75,
    }


def test_kimis_chunks_are_images_and_videos(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange

    tokenizer = SimpleNamespace(decode=lambda ids: "".join(map(chr, ids)))
    monkeypatch.setattr(vision_chunks, "cached_tokenizer_from_config", lambda _: tokenizer)
    prompt, chunks = "", []
    for begin, length in (("image<|media_content|>", 2), ("video<|media_content|>", 3)):
        prompt += begin
        position = PlaceholderRange(len(prompt), length)
        chunks.append(MultiModalFeatureSpec(None, "vision_chunk", begin, position))
        prompt += "." * length
    monkeypatch.setattr(vision_chunks, "LONGEST", len("video<|media_content|>"))
    request: Any = SimpleNamespace(mm_features=chunks, prompt_token_ids=[*map(ord, prompt)])
    tokens, kimi = Tokens(), SimpleNamespace(architecture=ARCHITECTURE)
    tokens.add(request, True, None, tells_media(kimi))  # type: ignore[arg-type]
    assert tokens.prompt == {"text": len(prompt) - 5, "image": 2, "video": 3}
