"""The accepted bodies by route: a table of bodies that are passed on, and one of refusals with messages."""

import json
from typing import Any

import pytest

from prismoe.server.requests.bodies import Unreadable, read_request
from prismoe.server.requests.models import Served
from tests.server.requests.bodies import (
    ALL,
    BATCH,
    BLOCK,
    CALL,
    CHAT,
    COMPLETIONS,
    COUNT,
    DETOKENIZE,
    IMAGE,
    INPUT_IMAGE,
    INSPECT,
    MESSAGES,
    RESPONSES,
    TEXT,
    TOKENIZE,
    URL,
    VIDEO,
    items,
    user,
)
from tests.server.requests.refused_bodies import FIRST, REFUSED


def read(path: str, body: Any, served: Served = ALL) -> Any:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return json.loads(read_request(path, raw, served).body)


def refusal(path: str, body: Any, served: Served = ALL) -> str:
    with pytest.raises(Unreadable) as refused:
        read(path, body, served)
    return str(refused.value)


SAME: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"model": "m", **user(TEXT, IMAGE), "temperature": 0.5, "unknown": {"a": [1, 2.5, None]}}),
    (CHAT, {"messages": [{"role": role, "content": ""} for role in ("system", "developer", "user")]}),
    (CHAT, {"messages": [{"role": "user", "name": "me", "content": "a"}], "n": 128}),
    (CHAT, {"messages": [{"role": "assistant", "content": None, "tool_calls": [CALL]}]}),
    (CHAT, {"messages": [{"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}]}),
    (CHAT, {**user(TEXT), "media_io_kwargs": {}}),
    (CHAT, {**user(TEXT), "response_format": {"type": "json_object"}}),
    (CHAT, {**user(TEXT), "chat_template_kwargs": {"enable_thinking": False}}),
    (CHAT, {**user(VIDEO, TEXT), "mm_processor_kwargs": {"fps": 1}}),
    (BATCH, {"messages": [user(VIDEO)["messages"]]}),
    (TOKENIZE, user(VIDEO)),
    (INSPECT, user(IMAGE)),
    (BATCH, {"messages": [user(TEXT)["messages"], user(IMAGE, TEXT)["messages"]]}),
    (TOKENIZE, {"prompt": "Hi"}),
    (TOKENIZE, user(IMAGE)),
    (DETOKENIZE, {"tokens": [0, 5]}),
    (COMPLETIONS, {"prompt": "Hi"}),
    (COMPLETIONS, {"prompt": [1] * 1000}),
    (COMPLETIONS, {"prompt": ["a"] * 64, "n": 2}),
    (COMPLETIONS, {"prompt": [[1], [2, 3]]}),
    (MESSAGES, {**user(BLOCK, TEXT), "system": "Be brief.", "max_tokens": 4}),
    (COUNT, {**user({"type": "image", "source": {"type": "url", "url": URL}}), "system": [TEXT]}),
    (MESSAGES, user({"type": "tool_result", "tool_use_id": "t", "content": [TEXT, BLOCK]})),
    (
        MESSAGES,
        {
            "messages": [
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "hm", "signature": "s"},
                        {"type": "redacted_thinking", "data": "x"},
                        {"type": "tool_use", "id": "t", "name": "f", "input": {}},
                    ],
                }
            ]
        },
    ),
    (RESPONSES, {"input": "Hi"}),
    (RESPONSES, items({"type": "message", "role": "user", "content": [INPUT_IMAGE]})),
    (
        RESPONSES,
        items(
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "42"},
        ),
    ),
]
"""Bodies that are passed on unchanged."""


@pytest.mark.parametrize(("path", "body"), SAME)
def test_listed_fields_are_passed_on(path: str, body: dict[str, Any]) -> None:
    assert read(path, body) == body


def echoed(role: str = "assistant") -> dict[str, Any]:
    """A message in the form in which OpenAI's library sends an answer back."""
    nothing = dict.fromkeys(("refusal", "audio", "function_call", "tool_calls"))
    return {
        "role": role,
        "content": "a",
        **nothing,
        "annotations": [],
        "parsed": {"image_pil": "/etc/hostname"},
    }


CHANGED: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (CHAT, user({**TEXT, "cache_control": {"type": "ephemeral"}}), user(TEXT)),
    (CHAT, user({**IMAGE, "image_url": {"url": URL, "detail": "high"}}), user(IMAGE)),
    (
        CHAT,
        {"messages": [echoed()]},
        {"messages": [{"role": "assistant", "content": "a", "refusal": None, "tool_calls": None}]},
    ),
    (
        CHAT,
        {"messages": [{"role": "user", "author": {"role": "user"}, "channel": "x", "content": "a"}]},
        {"messages": [{"role": "user", "content": "a"}]},
    ),
    (
        CHAT,
        {**user(TEXT), "response_format": {"type": "json_object", "schema": {"type": "object"}}},
        {
            **user(TEXT),
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "schema", "schema": {"type": "object"}},
            },
        },
    ),
    (MESSAGES, user({**TEXT, "cache_control": {}, "citations": None}), user(TEXT)),
    (
        RESPONSES,
        items({"role": "user", "content": [{**INPUT_IMAGE, "detail": "auto", "file_id": None}]}),
        items({"type": "message", "role": "user", "content": [INPUT_IMAGE]}),
    ),
    (
        RESPONSES,
        items(
            {
                "id": "msg_1",
                "status": "completed",
                "role": "assistant",
                "content": [
                    {"type": "output_text", "text": "a", "annotations": [], "logprobs": []},
                    {"type": "refusal", "refusal": "b"},
                ],
            }
        ),
        items({"type": "message", "role": "assistant", "content": "ab"}),
    ),
]
"""Bodies from which fields are removed."""


@pytest.mark.parametrize(("path", "body", "passed_on"), CHANGED)
def test_unlisted_fields_are_removed(path: str, body: dict[str, Any], passed_on: dict[str, Any]) -> None:
    assert read(path, body) == passed_on


@pytest.mark.parametrize(("path", "body", "sentence"), REFUSED)
def test_wrong_bodies_are_refused_with_a_message(path: str, body: Any, sentence: str) -> None:
    assert refusal(path, body) == sentence


IMAGES = [
    (CHAT, user(IMAGE)),
    (MESSAGES, user(BLOCK)),
    (RESPONSES, items({"role": "user", "content": [INPUT_IMAGE]})),
]


@pytest.mark.parametrize(("path", "body"), IMAGES)
def test_a_model_without_images_accepts_none(path: str, body: dict[str, Any]) -> None:
    assert refusal(path, body, Served(frozenset({"video"}))).endswith(
        "content[0] has the modality image, which this model does not take: leave it out."
    )


def test_a_model_without_videos_accepts_none() -> None:
    assert refusal(CHAT, user(VIDEO), Served(frozenset({"image"}))) == (
        f"{FIRST} has the modality video, which this model does not take: leave it out."
    )


def test_only_moe_llavas_images_can_choose_their_routing() -> None:
    body = {**user(IMAGE), "mm_processor_kwargs": {"routing": {"tail_experts": 4}}}
    assert read(CHAT, body, Served(frozenset({"image"}), images_choose_routing=True)) == body
