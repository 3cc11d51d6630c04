"""A bad request is one line in the log, without its text; a fault of the server has its traceback, once."""

import io
import json
import logging
import socket
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context, copy_context
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from vllm.exceptions import GracefulHTTPError, VLLMNotFoundError, VLLMValidationError
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from prismoe.server.logs.error_log import begin_request, log_faults_alone, may_be_written
from tests.server.fuzz.grammar import DATA_URL
from tests.server.log_lines import LogLines
from tests.server.running import Server

MARK = "zebrafish"
"""The client's text."""


def chat(*messages: Any, **options: Any) -> dict[str, Any]:
    reported = list(messages) or [{"role": "user", "content": MARK}]
    return {"model": "prismoji", "max_tokens": 2, "messages": reported, **options}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


TEXT = {"type": "text", "text": MARK}
PICTURE = {"type": "image_url", "image_url": {"url": f"http://127.0.0.1:9/{MARK}.png"}}
GOOD_PICTURE = {"type": "image_url", "image_url": {"url": DATA_URL}}
AUTHOR = {"author": {"role": "user", "name": MARK}, "content": []}
TOOL = {"type": "function", "function": {"name": MARK}}

CHAT, BATCH, INSPECT = "/v1/chat/completions", "/v1/chat/completions/batch", "/v1/routing/inspect"
COMPLETIONS, RESPONSES = "/v1/completions", "/v1/responses"
MESSAGES, COUNT = "/v1/messages", "/v1/messages/count_tokens"

BAD: list[tuple[str, Any]] = [
    (CHAT, chat(model=MARK)),
    (CHAT, chat(user({"type": "image_pil", "image_pil": MARK}, TEXT))),
    (CHAT, chat(user({"type": "image_pil", "image_pil": f"/tmp/{MARK}.png"}, TEXT))),
    (CHAT, chat(user({"type": "image_pil", "image_pil": f"http://127.0.0.1:9/{MARK}"}, TEXT))),
    (CHAT, chat(user({"type": "input_audio", "input_audio": MARK}, TEXT))),
    (CHAT, chat(user({"type": MARK, MARK: MARK}, TEXT))),
    (CHAT, chat(user(PICTURE, TEXT))),
    (CHAT, chat(user({"type": "image_url", "image_url": {"url": ""}}, TEXT))),
    (CHAT, chat(user({"type": "image_url", "image_url": {"url": f"data:image/png;base64,!{MARK}"}}))),
    (CHAT, chat(AUTHOR)),
    (CHAT, {"messages": None, "user": MARK}),
    (CHAT, chat({"role": "user", "content": None, "name": MARK})),
    (CHAT, chat({"role": "assistant", "content": MARK, "tool_calls": 5})),
    (CHAT, chat({"role": MARK, "content": MARK})),
    (CHAT, chat({"role": "tool", "tool_call_id": MARK, "content": MARK})),
    (CHAT, chat(chat_template_kwargs={"messages": [MARK]})),
    (CHAT, chat(chat_template=MARK)),
    (CHAT, chat(temperature=MARK)),
    (CHAT, chat(logit_bias={MARK: 1})),
    (CHAT, chat(allowed_token_ids=[10**9])),
    (CHAT, chat(structured_outputs={"regex": f"({MARK}"})),
    (CHAT, chat(structured_outputs={"grammar": MARK})),
    (
        CHAT,
        chat(
            response_format={"type": "json_schema", "json_schema": {"name": MARK, "schema": {"type": MARK}}}
        ),
    ),
    (CHAT, chat(tools=[TOOL], tool_choice="required")),
    (CHAT, chat(tools=MARK)),
    (CHAT, chat({"role": "user", "content": MARK * 5000})),
    (CHAT, chat(user(GOOD_PICTURE, TEXT), mm_processor_kwargs={"routing": {MARK: 1}})),
    (CHAT, chat(user(GOOD_PICTURE, TEXT), mm_processor_kwargs={MARK: MARK})),
    (CHAT, chat(vllm_xargs={"task": MARK})),
    (BATCH, chat([AUTHOR])),
    (BATCH, chat([user({"type": "image_pil", "image_pil": MARK}, TEXT)])),
    (BATCH, chat({"role": "user", "content": MARK})),
    (BATCH, chat([{"role": "user", "content": MARK}], stream=MARK)),
    (COMPLETIONS, {"model": "prismoji", "prompt": MARK, "max_tokens": MARK}),
    (COMPLETIONS, {"model": MARK, "prompt": MARK}),
    (COMPLETIONS, {"model": "prismoji", "prompt": [{MARK: MARK}]}),
    (COMPLETIONS, {"model": "prismoji", "prompt": [2**40], "user": MARK}),
    (COMPLETIONS, {"model": "prismoji", "prompt": MARK, "suffix": MARK}),
    (COMPLETIONS, {"model": "prismoji", "prompt": MARK, "stop": [""]}),
    (MESSAGES, chat(user({"type": "image"}, TEXT))),
    (MESSAGES, chat(user({"type": "image", "source": {"type": "url", "url": MARK}}))),
    (
        MESSAGES,
        chat(user({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": MARK}})),
    ),
    (MESSAGES, chat(user({"type": "tool_use", "id": MARK, "name": MARK, "input": {}}))),
    (MESSAGES, chat(user({"type": MARK, "text": MARK}))),
    (MESSAGES, chat(model=MARK)),
    (MESSAGES, chat(max_tokens=10**7)),
    (MESSAGES, chat(thinking={"type": MARK})),
    (COUNT, chat(model=MARK)),
    (COUNT, chat(user({"type": "image", "source": {"type": "url", "url": MARK}}))),
    (RESPONSES, {"model": MARK, "input": MARK}),
    (RESPONSES, {"model": "prismoji", "input": [{"type": MARK}]}),
    (RESPONSES, {"model": "prismoji", "input": [user({"type": "input_image", "image_url": MARK})]}),
    (RESPONSES, {"model": "prismoji", "input": [user({"type": "input_file", "file_data": MARK})]}),
    (RESPONSES, {"model": "prismoji", "input": MARK, "previous_response_id": f"resp_{MARK}"}),
    (RESPONSES, {"model": "prismoji", "input": MARK, "background": True, "store": True}),
    ("/tokenize", {"model": MARK, "prompt": MARK}),
    ("/tokenize", chat(AUTHOR)),
    ("/tokenize", chat(user({"type": "image_pil", "image_pil": MARK}, TEXT))),
    ("/detokenize", {"model": "prismoji", "tokens": [2**40], "user": MARK}),
    ("/detokenize", {"model": "prismoji", "tokens": MARK}),
    (INSPECT, chat(AUTHOR)),
    (INSPECT, chat(model=MARK)),
    (INSPECT, chat(max_tokens=MARK)),
    (INSPECT, chat(user({"type": "image_pil", "image_pil": MARK}, TEXT))),
    (f"/v1/{MARK}", {}),
    ("/v1/models", {MARK: MARK}),
]

NO_GRAMMAR = {"regex": f"({MARK}"}
BAD_FOR_A_STREAM: list[tuple[str, Any]] = [
    (CHAT, chat(logprobs=True, top_logprobs=500)),
    (CHAT, chat(structured_outputs=NO_GRAMMAR)),
    (CHAT, chat(allowed_token_ids=[10**9])),
    (COMPLETIONS, {"model": "prismoji", "prompt": MARK, "structured_outputs": NO_GRAMMAR}),
    (COMPLETIONS, {"model": "prismoji", "prompt": MARK, "stop_token_ids": [-5]}),
    (MESSAGES, chat(output_config={"format": {"type": "json_schema", "schema": {"type": MARK}}})),
    (RESPONSES, {"model": "prismoji", "input": MARK, "structured_outputs": NO_GRAMMAR}),
    (RESPONSES, {"model": "prismoji", "input": MARK, "logit_bias": {"99999999": 1}}),
    (INSPECT, chat(structured_outputs=NO_GRAMMAR)),
]
"""Faults that vLLM finds only when the engine gets the request."""


@pytest.fixture(scope="module")
def log(server: Server) -> LogLines:
    return LogLines(server)


def check_line(log: LogLines, request_id: str) -> None:
    """Check that the request has only its own line."""
    lines = log.of(request_id)
    assert len(lines) == 1 and " INFO " in lines[0] and "request method=" in lines[0], lines
    assert MARK not in lines[0]


@pytest.mark.parametrize(("path", "body"), BAD)
def test_a_bad_request_is_one_line(http: httpx.Client, log: LogLines, path: str, body: Any) -> None:
    request_id = f"bad-{id(body)}"
    answer = http.post(path, json=body, headers={"X-Request-Id": request_id})
    assert 400 <= answer.status_code < 500, answer.text
    check_line(log, request_id)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), BAD_FOR_A_STREAM)
def test_a_refused_stream_does_not_begin(
    http: httpx.Client, log: LogLines, path: str, body: Any, stream: bool
) -> None:
    request_id = f"bad-{id(body)}-{stream}"
    answer = http.post(path, json={**body, "stream": stream}, headers={"X-Request-Id": request_id})
    assert answer.status_code == 400 and answer.json()["error"]["message"]
    check_line(log, request_id)


@pytest.mark.parametrize("body", [b'{"messages": ["zebrafish', b"\xff\xfezebrafish", b"", b"[" * 10**5])
def test_a_body_that_is_not_json_is_one_line(http: httpx.Client, log: LogLines, body: bytes) -> None:
    request_id = f"bad-{len(body)}"
    headers = {"X-Request-Id": request_id, "Content-Type": "application/json"}
    assert http.post(CHAT, content=body, headers=headers).status_code == 400
    check_line(log, request_id)


def test_a_wrong_content_type_is_one_line(http: httpx.Client, log: LogLines) -> None:
    headers = {"X-Request-Id": "bad-type", "Content-Type": f"text/{MARK}"}
    assert http.post(CHAT, content=json.dumps(chat()), headers=headers).status_code == 400
    check_line(log, "bad-type")


def test_a_refused_upgrade_is_one_line(http: httpx.Client, log: LogLines) -> None:
    headers = {"X-Request-Id": "bad-upgrade", "Connection": "Upgrade", "Upgrade": "websocket"}
    assert http.get(f"/{MARK}", headers=headers).status_code == 404
    check_line(log, "bad-upgrade")


def test_bytes_that_are_not_http_are_one_line(http: httpx.Client, log: LogLines) -> None:
    with socket.create_connection((http.base_url.host, http.base_url.port or 0), 10) as client:
        client.sendall(f"{MARK} HTTP\r\n\r\n".encode())
        assert client.recv(100).startswith(b"HTTP/1.1 400")
    http.get("/v1/models", headers={"X-Request-Id": "good"})
    first, own = log.of("good")
    assert "Invalid HTTP request received." in first and MARK not in first
    assert "status=200" in own


logger = logging.getLogger("fault_log_test")
logger.propagate = False
logger.setLevel(logging.INFO)


def written(work: Callable[[], None]) -> str:
    """The log of `work` for a request. The log has two handlers."""
    texts = io.StringIO(), io.StringIO()
    handlers = [logging.StreamHandler(text) for text in texts]
    for handler in handlers:
        handler.addFilter(may_be_written)
        logger.addHandler(handler)

    def request() -> None:
        begin_request("req-1")
        work()

    try:
        copy_context().run(request)
    finally:
        for handler in handlers:
            logger.removeHandler(handler)
    assert texts[0].getvalue() == texts[1].getvalue()
    return texts[0].getvalue()


def raising(error: Exception, times: int = 1) -> Callable[[], None]:
    """Work that logs an error with the client's text while it handles the error, like vLLM does."""

    def work() -> None:
        try:
            try:
                raise KeyError(MARK)
            except KeyError as cause:
                raise error from cause
        except type(error):
            for _ in range(times):
                logger.error("Exception caught: %s", MARK)
                logger.exception("It failed: %s", MARK)

    return work


@pytest.mark.parametrize(
    "error",
    [
        ValueError(MARK),
        TypeError(MARK),
        VLLMValidationError(MARK),
        VLLMNotFoundError(MARK),
        GracefulHTTPError(MARK, HTTPStatus.TOO_MANY_REQUESTS),
        HTTPException(400, MARK),
        HTTPException(501, MARK),
        RequestValidationError([{"msg": MARK}]),
    ],
)
def test_an_error_of_the_client_is_not_logged(error: Exception) -> None:
    assert written(raising(error)) == ""


@pytest.mark.parametrize(
    "error",
    [
        AttributeError(MARK),
        RuntimeError(MARK),
        EngineGenerateError(MARK),
        EngineDeadError(),
        HTTPException(500, MARK),
    ],
)
def test_a_fault_is_logged_once_with_its_traceback(error: Exception) -> None:
    text = written(raising(error, times=3))
    assert text.startswith("A fault of the server, request_id=req-1\nTraceback (most recent call last):\n")
    assert text.count("raise error from cause") == text.count("raise KeyError") == 1
    assert text.index("KeyError\n\nThat led to another error.") < text.index("raise error from cause")
    assert text.endswith(f"{type(error).__name__}\n")
    assert MARK not in text.replace("KeyError(MARK)", "")


def test_two_faults_of_a_request_are_both_logged() -> None:
    def work() -> None:
        raising(RuntimeError())()
        raising(AttributeError())()

    assert written(work).count("A fault of the server") == 2


def test_records_below_errors_are_logged_from_warnings_on() -> None:
    def work() -> None:
        logger.info("told")
        logger.warning("Skipping multimodal part %s", MARK)
        logger.error("Error with model %s", MARK)

    assert written(work) == "told\n"


def test_outside_of_a_request_everything_is_logged() -> None:
    def work() -> None:
        Context().run(raising(ValueError("outside")))

    assert "ValueError: outside" in written(work)


def test_prismoes_own_lines_are_logged() -> None:
    record = logging.LogRecord("vllm.prismoe.load", logging.WARNING, "", 0, "It is late.", (), None)
    context = copy_context()
    context.run(begin_request, "req-1")
    assert context.run(may_be_written, record)


def test_warnings_and_threads_of_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_: shown.append(str(message)))
    with ThreadPoolExecutor(1) as texts, ThreadPoolExecutor(1) as images:
        renderer: Any = SimpleNamespace(_executor=texts, _mm_executor=images)
        log_faults_alone(renderer)

        def work() -> None:
            warnings.warn(f"serialized as {MARK}", stacklevel=1)
            for pool in (texts, images):
                pool.submit(logger.warning, "Chat template rejected the request: %s", MARK).result()

        assert written(work) == ""
        assert texts.submit(warnings.warn, "outside").result() is None
    assert shown == ["outside"]
