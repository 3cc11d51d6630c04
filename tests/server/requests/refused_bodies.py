"""Refused bodies by route, each with its message."""

from typing import Any

from tests.server.requests.bodies import (
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
    LEFT_OUT,
    MESSAGES,
    PARTS,
    RESPONSES,
    ROLES,
    TEXT,
    TOKENIZE,
    URL,
    VIDEO,
    items,
    user,
)


def tool_calls(calls: Any) -> dict[str, Any]:
    return {"messages": [{"role": "assistant", "content": "a", "tool_calls": calls}]}


FIRST = "messages[0].content[0]"
CHAT_HAS_VIDEOS = "Send videos as parts of messages to /v1/chat/completions."

REFUSED: list[tuple[str, Any, str]] = [
    # Bodies that are not a JSON object.
    (CHAT, b"", "The request's body is not JSON: EOF while parsing a value at line 1 column 0."),
    (CHAT, b"{", "The request's body is not JSON: EOF while parsing an object at line 1 column 1."),
    (CHAT, b"\xff", "The request's body is not JSON: expected value at line 1 column 1."),
    (
        CHAT,
        rb'{"a": "\ud83d"}',
        "The request's body is not JSON: unexpected end of hex escape at line 1 column 14.",
    ),
    (
        CHAT,
        b'{"a": "\xed\xa0\xbd"}',
        "The request's body is not JSON: invalid unicode code point at line 1 column 8.",
    ),
    (CHAT, b"[]", "The request's body must be a JSON object."),
    (RESPONSES, b"3", "The request's body must be a JSON object."),
    (CHAT, b"[" * 100_000, "The request's JSON is nested too deeply: send fewer levels."),
    (
        CHAT,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        "The request's JSON is nested too deeply: send fewer levels.",
    ),
    # Messages and roles.
    (CHAT, {}, "messages is missing."),
    (CHAT, {"messages": None}, "messages must be a list."),
    (CHAT, {"messages": []}, "messages is empty."),
    (CHAT, {"messages": [3]}, "messages[0] must be an object."),
    (
        CHAT,
        {"messages": [{"author": {"role": "user"}, "content": []}]},
        f"messages[0].role is missing. {ROLES}",
    ),
    (BATCH, {"messages": [[{"author": {"role": "user"}}]]}, f"messages[0][0].role is missing. {ROLES}"),
    (TOKENIZE, {"messages": [{"author": {"role": "user"}}]}, f"messages[0].role is missing. {ROLES}"),
    (INSPECT, {"messages": [{"author": {"role": "user"}}]}, f"messages[0].role is missing. {ROLES}"),
    *(
        (CHAT, {"messages": [{"role": role, "content": "a"}]}, f"messages[0].role is {role!r}. {ROLES}")
        for role in ("wizard", "User", "", None, 3, ["user"], {"user": 1})
    ),
    (CHAT, {"messages": [{"role": "user"}]}, "messages[0].content is missing."),
    (
        CHAT,
        {"messages": [{"role": "user", "content": None}]},
        "messages[0].content must be a text or a list of parts.",
    ),
    (CHAT, user(), "messages[0].content is an empty list: give at least one of its parts."),
    (
        CHAT,
        {"messages": [{"role": "assistant"}]},
        "messages[0] is empty: give it a content or tool_calls.",
    ),
    (CHAT, {"messages": [{"role": "user", "content": "a", "name": 3}]}, "messages[0].name must be a text."),
    (BATCH, {"messages": []}, "messages is empty."),
    (BATCH, {"messages": [[]]}, "messages[0] is empty."),
    (BATCH, user(TEXT), "messages[0] must be a list."),
    # Parts.
    *(
        (path, wrapped({"type": kind, kind: "x"}), f"{where}.type is {kind!r}. {PARTS}")
        for kind in (
            "image_pil",
            "image_embeds",
            "video",
            "video_embeds",
            "input_audio",
            "file",
            "prompt_embeds",
            "thinking",
        )
        for path, where, wrapped in (
            (CHAT, FIRST, user),
            (INSPECT, FIRST, user),
            (TOKENIZE, FIRST, user),
            (BATCH, "messages[0][0].content[0]", lambda part: {"messages": [user(part)["messages"]]}),
        )
    ),
    (
        CHAT,
        b'{"messages": [{"role": "user", "content": [{"type": "text", "type": "image_pil"}]}]}',
        f"{FIRST}.type is 'image_pil'. {PARTS}",
    ),
    (CHAT, user({"image_url": URL}), f"{FIRST}.type is missing. {PARTS}"),
    (CHAT, user("Hi"), f"{FIRST} must be an object."),
    (CHAT, user([TEXT]), f"{FIRST} must be an object."),
    (CHAT, user({"type": "text"}), f"{FIRST}.text is missing."),
    (CHAT, user({"type": "text", "text": 3}), f"{FIRST}.text must be a text."),
    (CHAT, user({**TEXT, "image_pil": "x"}), f"{FIRST}.image_pil is not supported: {LEFT_OUT}"),
    (CHAT, user({**TEXT, "<a>": "x"}), f"{FIRST}.<a> is not supported: {LEFT_OUT}"),
    (CHAT, user({**IMAGE, "image_embeds": "x"}), f"{FIRST}.image_embeds is not supported: {LEFT_OUT}"),
    (
        CHAT,
        user({**IMAGE, "uuid": "mine"}),
        f"{FIRST}.uuid would share the medium with other clients: {LEFT_OUT}",
    ),
    (
        CHAT,
        user({"type": "image_url", "uuid": "mine"}),
        f"{FIRST}.uuid would share the medium with other clients: {LEFT_OUT}",
    ),
    (CHAT, user({"type": "image_url", "image_url": URL}), f"{FIRST}.image_url must be an object."),
    (CHAT, user({"type": "image_url", "image_url": {}}), f"{FIRST}.image_url.url is missing."),
    (CHAT, user({"type": "image_url", "image_url": {"url": ""}}), f"{FIRST}.image_url.url is empty."),
    (
        CHAT,
        user({**VIDEO, "uuid": "mine"}),
        f"{FIRST}.uuid would share the medium with other clients: {LEFT_OUT}",
    ),
    (CHAT, user({**VIDEO, "fps": 2}), f"{FIRST}.fps is not supported: {LEFT_OUT}"),
    (CHAT, user({"type": "video_url", "video_url": URL}), f"{FIRST}.video_url must be an object."),
    (CHAT, user({"type": "video_url", "video_url": {}}), f"{FIRST}.video_url.url is missing."),
    (
        CHAT,
        user({"type": "video_url", "video_url": {"url": URL, "detail": "low"}}),
        f"{FIRST}.video_url.detail is not supported: {LEFT_OUT}",
    ),
    # Parts that two APIs don't have.
    (
        RESPONSES,
        items({"type": "message", "role": "user", "content": [{"type": "input_video", "video_url": URL}]}),
        "input[0].content[0].type is 'input_video'. The parts are: input_text, input_image. "
        + CHAT_HAS_VIDEOS,
    ),
    (
        MESSAGES,
        user({"type": "video", "source": {"type": "url", "url": URL}}),
        f"{FIRST}.type is 'video'. The blocks of a user are: text, image, tool_result. {CHAT_HAS_VIDEOS}",
    ),
    # Routing settings that only MoE-LLaVA accepts.
    (
        CHAT,
        {**user(IMAGE), "mm_processor_kwargs": {"routing": {}}},
        "mm_processor_kwargs.routing is only for MoE-LLaVA models, and this is another: leave it out.",
    ),
    (CHAT, user({"type": "x" * 100}), f"{FIRST}.type is '{'x' * 39}…. {PARTS}"),
    # Calls of tools.
    (CHAT, tool_calls(5), "messages[0].tool_calls must be a list."),
    (CHAT, tool_calls([5]), "messages[0].tool_calls[0] must be an object."),
    (CHAT, tool_calls([{"id": "c"}]), "messages[0].tool_calls[0].function is missing."),
    (CHAT, tool_calls([{**CALL, "type": "custom"}]), "messages[0].tool_calls[0].type must be 'function'."),
    (
        CHAT,
        tool_calls([{"function": {"name": "f", "arguments": 3}}]),
        "messages[0].tool_calls[0].function.arguments must be a JSON text or an object.",
    ),
    (CHAT, {"messages": [{"role": "tool", "content": "4"}]}, "messages[0].tool_call_id is missing."),
    # Obsolete keys.
    *(
        (path, {**body, old: given}, f"{old} is no longer supported: send {new} instead.")
        for path, body in ((CHAT, user(TEXT)), (COMPLETIONS, {"prompt": "Hi"}))
        for old, given, new in (
            ("functions", [], "tools"),
            ("function_call", "auto", "tool_choice"),
            ("guided_json", {}, "structured_outputs"),
            ("guided_regex", "a*", "structured_outputs"),
            ("guided_choice", ["a"], "structured_outputs"),
            ("guided_grammar", "root ::= 'a'", "structured_outputs"),
        )
    ),
    # Numbers of answers, and settings that only the operator may change.
    *(
        (CHAT, {**user(TEXT), "n": n}, "n must be a whole number.")
        for n in ("1000", 1000.5, [1000], {"a": 1}, True)
    ),
    (CHAT, {**user(TEXT), "n": 10**4000}, "n must be at most 128."),
    (
        BATCH,
        {"messages": [user(TEXT)["messages"]] * 43, "n": 3},
        "The request asks for 129 answers: ask for at most 128.",
    ),
    (
        CHAT,
        {**user(TEXT), "media_io_kwargs": {"image": {}}},
        "media_io_kwargs is not allowed in requests: leave it out.",
    ),
    *(
        (
            path,
            {**body, "chat_template_kwargs": {name: []}},
            f"chat_template_kwargs can't contain {name}: leave it out.",
        )
        for name in ("messages", "tools", "conversation", "return_tensors")
        for path, body in ((CHAT, user(TEXT)), (MESSAGES, user(TEXT)), (RESPONSES, {"input": "a"}))
    ),
    (CHAT, {**user(TEXT), "chat_template_kwargs": 3}, "chat_template_kwargs must be an object."),
    # Completions and tokens.
    (COMPLETIONS, {}, "prompt is missing."),
    *(
        (
            COMPLETIONS,
            {"prompt": prompt},
            "prompt must be a text, a list of token ids, a list of texts, or a list of lists of token ids.",
        )
        for prompt in (None, 3, {"a": 1}, [1, "a"], [[1], "a"], [[1, "a"]], [True], [None])
    ),
    (COMPLETIONS, {"prompt": "Hi", "n": 129}, "n must be at most 128."),
    (COMPLETIONS, {"prompt": ["Hi"] * 65, "n": 2}, "The request asks for 130 answers: ask for at most 128."),
    (COMPLETIONS, {"prompt": [[1, 2]] * 129}, "The request asks for 129 answers: ask for at most 128."),
    (TOKENIZE, {}, "The request must have either messages or a prompt."),
    (TOKENIZE, {"prompt": "a", **user(TEXT)}, "The request must have either messages or a prompt."),
    (TOKENIZE, {"prompt": [1]}, "prompt must be a text."),
    (DETOKENIZE, {"tokens": ["a"]}, "tokens[0] must be a whole number."),
    (DETOKENIZE, {"tokens": [2**40]}, "tokens[0] must be less than 2147483648."),
    (DETOKENIZE, {"tokens": [1, -1]}, "tokens[1] must be at least 0."),
    # Anthropic's messages.
    *(
        (path, user(block), message)
        for path in (MESSAGES, COUNT)
        for block, message in (
            ({"type": "image"}, f"{FIRST}.source is missing."),
            ({"type": "image", "source": None}, f"{FIRST}.source must be an object."),
            (
                {"type": "image", "source": {}},
                f"{FIRST}.source.type is missing. The sources are: base64, url.",
            ),
            (
                {"type": "image", "source": {"type": "file", "file_id": "x"}},
                f"{FIRST}.source.type is 'file'. The sources are: base64, url.",
            ),
            ({"type": "image", "source": {"type": "url"}}, f"{FIRST}.source.url is missing."),
            (
                {"type": "image", "source": {"type": "base64", "media_type": "image/png"}},
                f"{FIRST}.source.data is missing.",
            ),
            (
                {"type": "image", "source": {"type": "base64", "media_type": "x,y", "data": "A"}},
                f"{FIRST}.source.media_type must match ^image/[a-z0-9.+-]+$.",
            ),
            (
                {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "image"}]},
                f"{FIRST}.content[0].source is missing.",
            ),
            (
                {"type": "document", "source": {}},
                f"{FIRST}.type is 'document'. The blocks of a user are: text, image, tool_result.",
            ),
            ({"type": "text", "text": ""}, f"{FIRST}.text is empty."),
        )
    ),
    (
        MESSAGES,
        {"messages": [{"role": "assistant", "content": [BLOCK]}]},
        f"{FIRST}.type is 'image'. "
        "The blocks of an assistant are: text, tool_use, thinking, redacted_thinking.",
    ),
    (
        MESSAGES,
        {"messages": [{"role": "developer", "content": "a"}]},
        "messages[0].role is 'developer'. The roles are: user, assistant, system.",
    ),
    (
        MESSAGES,
        {**user(TEXT), "system": [BLOCK]},
        "system[0].type is 'image'. The blocks of a system prompt are: text.",
    ),
    (MESSAGES, {**user(TEXT), "system": 3}, "system must be a text or a list of blocks."),
    # Responses.
    (RESPONSES, {}, "input is missing."),
    (RESPONSES, {"input": None}, "input must be a text or a list of items."),
    (RESPONSES, items(), "input is an empty list: give at least one of its items."),
    (
        RESPONSES,
        items({"author": {"role": "user"}}),
        "input[0].role is missing. The roles are: system, developer, user, assistant.",
    ),
    (RESPONSES, items({"role": "user"}), "input[0].content is missing."),
    (
        RESPONSES,
        items({"role": "user", "content": [{"type": "image_pil", "image_pil": "x"}]}),
        "input[0].content[0].type is 'image_pil'. The parts are: input_text, input_image.",
    ),
    (
        RESPONSES,
        items({"role": "user", "content": [{"type": "input_image", "file_id": "x"}]}),
        "input[0].content[0].image_url is missing.",
    ),
    (
        RESPONSES,
        items({"role": "user", "content": [{**INPUT_IMAGE, "file_id": "x"}]}),
        f"input[0].content[0].file_id is not supported: {LEFT_OUT}",
    ),
    (
        RESPONSES,
        items({"type": "item_reference", "id": "x"}),
        "input[0].type is 'item_reference'. "
        "The items are: message, function_call, function_call_output, reasoning.",
    ),
    (
        RESPONSES,
        items({"type": "function_call_output", "call_id": "c", "output": [{"type": "input_file"}]}),
        "input[0].output[0].type is 'input_file'. The parts are: input_text, input_image.",
    ),
    (
        RESPONSES,
        {"input": "a", "previous_input_messages": [{"author": {}}]},
        "previous_input_messages is not allowed in requests: leave it out.",
    ),
]
"""Refused bodies, and the message with the reason."""
