"""Tools on all routes have the same rules, by the template and the server's tool parser."""

import json
from itertools import product
from typing import Any, NamedTuple

import pytest

from prismoe.server.requests.bodies import Unreadable, read_request
from prismoe.server.requests.models import Served

NO_PLACE = (
    "This model's chat template does not support tools: leave tools, their calls and their results out of "
    "the request, or serve the model with a --chat-template that supports them."
)
NO_CALLS = (
    "This server doesn't read calls from answers: start it with --enable-auto-tool-choice and "
    "--tool-call-parser, or set tool_choice to none."
)
HI = [{"type": "message", "role": "user", "content": "Hi"}]
CALL = {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{}"}}]}


class API(NamedTuple):
    """The spelling of tools in an API."""

    key: str
    """The key of the conversation."""
    tool: dict[str, Any]
    forced: list[Any]
    auto: list[Any]
    none: Any
    exchange: list[Any]
    """A call and its result."""


OPENAI = API(
    "messages",
    {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}},
    ["required", {"type": "function", "function": {"name": "f"}}],
    ["auto", None],
    "none",
    [CALL, {"role": "tool", "tool_call_id": "c", "content": "4"}],
)
ANTHROPIC = API(
    "messages",
    {"name": "f", "input_schema": {"type": "object"}},
    [{"type": "any"}, {"type": "tool", "name": "f"}],
    [{"type": "auto"}, None],
    {"type": "none"},
    [
        {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "f", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "4"}]},
    ],
)
RESPONSES = API(
    "input",
    {"type": "function", "name": "f", "parameters": {"type": "object"}},
    [
        "required",
        {"type": "function", "name": "f"},
        {"type": "allowed_tools", "mode": "required", "tools": []},
    ],
    ["auto", None, {"type": "allowed_tools", "mode": "auto", "tools": []}],
    "none",
    [
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "4"},
    ],
)
APIS = {
    "/v1/chat/completions": OPENAI,
    "/v1/chat/completions/batch": OPENAI,
    "/v1/routing/inspect": OPENAI,
    "/tokenize": OPENAI,
    "/v1/messages": ANTHROPIC,
    "/v1/messages/count_tokens": ANTHROPIC,
    "/v1/responses": RESPONSES,
}
ROUTES = pytest.mark.parametrize(("path", "api"), APIS.items(), ids=APIS)

NOTHING = Served()
TEMPLATE = Served(template_has_tools=True)
FORCING = Served(template_has_tools=True, reads_forced_calls=True)
ALL = Served(template_has_tools=True, reads_forced_calls=True, reads_calls=True)


def refusal(path: str, body: dict[str, Any], served: Served) -> str:
    """The message of a refusal, or an empty text if the body is passed on unchanged."""
    try:
        read = read_request(path, json.dumps(body).encode(), served)
    except Unreadable as error:
        return str(error)
    assert json.loads(read.body) == body
    return ""


def body(path: str, api: API, *messages: Any, **more: Any) -> dict[str, Any]:
    """A body with a conversation and more messages after it."""
    message = [{**HI[0]}, *messages]
    if api is not RESPONSES:
        del message[0]["type"]
    return {api.key: [message] if path.endswith("batch") else message, **more}


@ROUTES
def test_tools_need_a_template_and_a_parser(path: str, api: API) -> None:
    no_parser = "" if path in ("/tokenize", "/v1/messages/count_tokens") else NO_CALLS
    for served, choices, expected in (
        *product([NOTHING], [api.auto, api.forced], [NO_PLACE]),
        *product([TEMPLATE], [api.auto, api.forced], [no_parser]),
        (FORCING, api.auto, no_parser),
        (FORCING, api.forced, ""),
        *product([ALL], [api.auto, api.forced], [""]),
        *product([NOTHING, TEMPLATE, FORCING, ALL], [[api.none]], [""]),
    ):
        for choice in choices:
            asked = body(path, api, tools=[api.tool], tool_choice=choice)
            assert refusal(path, asked, served) == expected, (served, choice)


@ROUTES
def test_calls_and_results_need_a_template(path: str, api: API) -> None:
    for messages in (api.exchange, api.exchange[:1], api.exchange[1:]):
        asked = body(path, api, *messages)
        assert refusal(path, asked, NOTHING) == NO_PLACE
        assert refusal(path, asked, TEMPLATE) == ""


@ROUTES
def test_a_forced_call_needs_tools(path: str, api: API) -> None:
    expected = "tool_choice asks for a call, but the request has no tools: send tools, too."
    for choice in api.forced:
        asked = body(path, api, tool_choice=choice)
        assert refusal(path, asked, ALL) == refusal(path, asked, NOTHING) == expected


@ROUTES
def test_a_tool_that_the_server_would_have_to_run_is_refused(path: str, api: API) -> None:
    asked = body(path, api, tools=[api.tool, {**api.tool, "type": "web_search"}])
    expected = "tools[1].type is 'web_search'. prismoe runs no tools: send only functions."
    assert refusal(path, asked, ALL) == expected
    assert refusal(path, body(path, api, tools=["f"]), ALL) == "tools[0] must be an object."
