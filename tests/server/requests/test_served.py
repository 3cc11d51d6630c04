"""Whether a chat template supports tools, judged by its output for a tool, a call and a result."""

import asyncio
import json
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest

from prismoe.server.requests.served import _modalities, _template_has_tools


def has_tools(writes: tuple[bool, bool, bool]) -> bool:
    """Whether a template that writes only some of the three supports tools."""

    async def render(request: Any) -> Any:
        tools = json.dumps([tool.model_dump() for tool in request.tools])
        calls = json.dumps(request.messages[1]["tool_calls"], default=list)
        parts = zip((tools, calls, request.messages[2]["content"]), writes, strict=True)
        return [], [{"prompt_token_ids": " ".join(str(part) for part, written in parts if written)}]

    tokenizer = SimpleNamespace(decode=lambda ids: ids)
    engine: Any = SimpleNamespace(renderer=SimpleNamespace(get_tokenizer=lambda: tokenizer))
    chat: Any = SimpleNamespace(render_chat_request=render)
    return asyncio.run(_template_has_tools(engine, chat))


@pytest.mark.parametrize("writes", list(product([False, True], repeat=3)))
def test_a_template_has_to_write_all_three(writes: tuple[bool, bool, bool]) -> None:
    assert has_tools(writes) is all(writes)


def test_a_template_that_raises_for_tools_does_not_support_them() -> None:
    async def refuse(request: Any) -> Any:
        raise TypeError("can only concatenate str")

    chat: Any = SimpleNamespace(render_chat_request=refuse)
    engine: Any = SimpleNamespace()
    assert asyncio.run(_template_has_tools(engine, chat)) is False


@pytest.mark.parametrize(
    ("limits", "taken"),
    [
        ({"image": 8}, {"image"}),
        ({"image": 8, "video": 1}, {"image", "video"}),
        ({"image": 8, "video": 0}, {"image"}),
        ({"vision_chunk": 8}, {"vision_chunk", "image", "video"}),
        ({"vision_chunk": 0}, set()),
    ],
)
def test_media_are_those_that_the_models_processor_supports(limits: dict[str, int], taken: set[str]) -> None:
    processor = SimpleNamespace(info=SimpleNamespace(allowed_mm_limits=limits))
    engine: Any = SimpleNamespace(renderer=SimpleNamespace(mm_processor=processor))
    assert _modalities(engine) == taken
