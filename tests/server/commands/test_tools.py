"""Tools on a server whose template supports them: the model sees and calls them the same on all routes."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from prismoe.model_plugins.files.bundled import bundled_checkpoint
from tests.doc_commands import documented
from tests.paths import DATA
from tests.server.running import Server

pytestmark = pytest.mark.server

TEMPLATE = DATA / "tools-template.jinja"

SCHEMA = {
    "type": "object",
    "properties": {
        "animal": {"enum": ["rabbit", "hare"]},
        "most": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["animal", "most"],
    "additionalProperties": False,
}
ASKED = {"role": "user", "content": "How many rabbits?"}
ARGUMENTS = {"animal": "rabbit", "most": 2}

CHAT_TOOL = {
    "type": "function",
    "function": {"name": "count", "description": "It counts.", "parameters": SCHEMA},
}
CHAT = [
    ASKED,
    {
        "role": "assistant",
        "content": "Let me see.",
        "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "count", "arguments": json.dumps(ARGUMENTS)}}
        ],
    },
    {"role": "tool", "tool_call_id": "c", "content": "There are 42."},
]
MESSAGES_TOOL = {"name": "count", "description": "It counts.", "input_schema": SCHEMA}
MESSAGES = [
    ASKED,
    {
        "role": "assistant",
        "content": [
            {"type": "text", "text": "Let me see."},
            {"type": "tool_use", "id": "c", "name": "count", "input": ARGUMENTS},
        ],
    },
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "There are 42."}]},
]
RESPONSES_TOOL = {"type": "function", "name": "count", "description": "It counts.", "parameters": SCHEMA}
RESPONSES = [
    ASKED,
    {"role": "assistant", "content": "Let me see."},
    {"type": "function_call", "call_id": "c", "name": "count", "arguments": json.dumps(ARGUMENTS)},
    {"type": "function_call_output", "call_id": "c", "output": "There are 42."},
]


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    [command] = documented("prismoe serve MODEL --chat-template")
    values = {"MODEL": str(bundled_checkpoint()), "FILE": str(TEMPLATE), "NAME": "internlm"}
    _, _, *arguments = [values.get(word, word) for word in command.split()]
    server = Server(tmp_path_factory.mktemp("tools") / "log", *arguments)
    try:
        server.wait_until_ready()
        with httpx.Client(base_url=server.url, timeout=60) as client:
            yield client
    finally:
        server.stop()


def post(client: httpx.Client, path: str, body: dict[str, Any]) -> Any:
    answer = client.post(path, json={"model": "prismoji", "temperature": 0, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_model_sees_the_same_prompt_on_all_routes(tools: httpx.Client) -> None:
    asked = {"messages": CHAT, "tools": [CHAT_TOOL]}
    ids = post(tools, "/tokenize", asked)["tokens"]
    prompt = post(tools, "/detokenize", {"tokens": ids})["prompt"]
    for word in (
        '"description": "It counts."',
        '"name": "count"',
        '"animal": "rabbit"',
        "RESULT: There are 42.",
    ):
        assert word in prompt
    chat = post(tools, "/v1/chat/completions", {**asked, "max_tokens": 1, "return_token_ids": True})
    assert chat["prompt_token_ids"] == ids
    messages = {"messages": MESSAGES, "tools": [MESSAGES_TOOL]}
    assert post(tools, "/v1/messages/count_tokens", messages)["input_tokens"] == len(ids)
    used = post(tools, "/v1/messages", {**messages, "max_tokens": 1})[
        "usage"
    ]  # different tools are not confused in the cache
    new = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    assert sum(used[key] or 0 for key in new) == len(ids)
    responses = {"input": RESPONSES, "tools": [RESPONSES_TOOL], "max_output_tokens": 1}
    assert post(tools, "/v1/responses", responses)["usage"]["input_tokens"] == len(ids)


def check_call(name: str, arguments: Any) -> None:
    assert name == "count"
    assert sorted(arguments) == ["animal", "most"]
    assert arguments["animal"] in ("rabbit", "hare")
    assert arguments["most"] in range(100)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "count"}}], ids=str)
def test_a_forced_call_in_chat(tools: httpx.Client, choice: Any) -> None:
    body = {"messages": [ASKED], "tools": [CHAT_TOOL], "tool_choice": choice, "parallel_tool_calls": False}
    message = post(tools, "/v1/chat/completions", body)["choices"][0]["message"]
    (call,) = message["tool_calls"]
    assert not message["content"]
    check_call(call["function"]["name"], json.loads(call["function"]["arguments"]))


@pytest.mark.parametrize(
    "choice", [{"type": "any", "disable_parallel_tool_use": True}, {"type": "tool", "name": "count"}], ids=str
)
def test_a_forced_call_in_messages(tools: httpx.Client, choice: Any) -> None:
    body = {"messages": [ASKED], "tools": [MESSAGES_TOOL], "tool_choice": choice, "max_tokens": 100}
    answer = post(tools, "/v1/messages", body)
    (block,) = [block for block in answer["content"] if block["type"] == "tool_use"]
    assert answer["stop_reason"] == "tool_use"
    check_call(block["name"], block["input"])


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "count"}], ids=str)
def test_a_forced_call_in_responses(tools: httpx.Client, choice: Any) -> None:
    body = {
        "input": "How many?",
        "tools": [RESPONSES_TOOL],
        "tool_choice": choice,
        "parallel_tool_calls": False,
    }
    (call,) = [
        item for item in post(tools, "/v1/responses", body)["output"] if item["type"] == "function_call"
    ]
    check_call(call["name"], json.loads(call["arguments"]))


def test_the_model_can_answer_without_a_call(tools: httpx.Client) -> None:
    chat = post(tools, "/v1/chat/completions", {"messages": [ASKED], "tools": [CHAT_TOOL], "max_tokens": 4})
    assert chat["choices"][0]["message"]["content"]
    messages = {"messages": [ASKED], "tools": [MESSAGES_TOOL], "max_tokens": 4}
    assert post(tools, "/v1/messages", messages)["content"][0]["text"]
    responses = {"input": [ASKED], "tools": [RESPONSES_TOOL], "max_output_tokens": 4}
    assert post(tools, "/v1/responses", responses)["output"][0]["content"][0]["text"]
