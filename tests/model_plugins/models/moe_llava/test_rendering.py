"""A user's text is tokenized as plain text, and the template's special tokens keep their meaning."""

import asyncio
import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer
from vllm.exceptions import VLLMValidationError
from vllm.renderers import chat_utils
from vllm.renderers.params import ChatParams

from prismoe.model_plugins.files.bundled import bundled_checkpoint
from prismoe.model_plugins.models.moe_llava.processing import IMAGE_INDEX
from prismoe.model_plugins.models.moe_llava.rendering import MEDIA, SEPARATOR, PlainTextRenderer, _joined
from prismoe.model_plugins.plugin import register
from tests.model_plugins.engine import PHI

register()


class Rendering(PlainTextRenderer):
    """The renderer with a tokenizer and no other part of vLLM."""

    tokenizer: Any

    def __init__(self, checkpoint: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint)

    def tokens(self, text: str, images: bool = False) -> list[int]:
        """The ids of a prompt. The parts between « and » are a user's."""
        template, *users = text.split("«")
        for user in users:
            own, _, rest = user.partition("»")
            template += self._separated(own) + rest
        prompt: Any = {"prompt": template} | ({"multi_modal_data": {}} if images else {})
        tokenized: Any = self._tokenize_prompt(prompt, SimpleNamespace())
        assert tokenized["prompt"] == re.sub(f"[«»{SEPARATOR}]", "", text)
        ids: list[int] = tokenized["prompt_token_ids"]
        return ids

    def text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode([id for id in ids if id >= 0]))


@pytest.fixture(scope="module", params=[PHI, bundled_checkpoint()], ids=["phi", "prismoji"])
def rendering(request: pytest.FixtureRequest) -> Rendering:
    return Rendering(request.param)


@pytest.fixture
def special(rendering: Rendering) -> set[int]:
    return {IMAGE_INDEX, *rendering.tokenizer.all_special_ids}


SPELLED = ["<image>", "<|endoftext|>", "<image><image>", "Is <image> a <|endoftext|>?", "<imag<image>e>"]
ORDINARY = [
    "What is this?",
    "  spaces \n\n here",
    "a<b>c",
    "x < y and y > z",
    "<",
    "naïve 日本語 🦊",
    "it's",
    "",
]


@pytest.mark.parametrize("text", [*SPELLED, *ORDINARY, "<<image>>", f"<{SEPARATOR}image>"])
def test_a_users_text_is_text(rendering: Rendering, special: set[int], text: str) -> None:
    for images in (False, True):
        ids = rendering.tokens(f"«{text}»", images)
        assert not special & set(ids)
        assert rendering.text(ids) == text.replace(SEPARATOR, "")


def test_parts_of_a_users_text_never_join_to_a_special_token(rendering: Rendering, special: set[int]) -> None:
    assert not special & set(rendering.tokens("«<»«image>» «<|endof»«text|>»", images=True))


def test_the_templates_own_special_tokens_stay(rendering: Rendering) -> None:
    end = rendering.tokenizer.eos_token_id
    ids = rendering.tokens(
        "USER: <image>\n«<image>» ASSISTANT: «no<|endoftext|>»<|endoftext|>USER: <image>", True
    )
    assert [id for id in ids if id in (IMAGE_INDEX, end)] == [IMAGE_INDEX, end, IMAGE_INDEX]
    assert rendering.tokens("USER: <image>") == rendering.tokens("USER: «<image>»")  # no image: no mark


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_is_tokenized_as_before(rendering: Rendering, text: str) -> None:
    expected = rendering.tokenizer.encode(text, add_special_tokens=False)
    assert rendering.tokens(text) == rendering.tokens(f"«{text}»") == expected
    prompt = f"USER: <image>\n{text} ASSISTANT:<|endoftext|>"
    around = [rendering.tokenizer.encode(part, add_special_tokens=False) for part in prompt.split("<image>")]
    assert rendering.tokens(prompt, images=True) == [*around[0], IMAGE_INDEX, *around[1]]


def test_images_are_left_alone(rendering: Rendering) -> None:
    url = {"url": "https://example.com/<image>"}
    parts = iter([{"type": "image_url", "image_url": url}, {"type": "text", "text": "<image>"}, "<image>"])
    message = rendering._separated_message({"role": "user", "content": parts})
    assert message["content"][0]["image_url"] == url and message["role"] == "user"
    assert message["content"][1:] == [{"type": "text", "text": f"<{SEPARATOR}image>"}, f"<{SEPARATOR}image>"]


def test_a_template_does_not_see_an_images_keys() -> None:
    assert MEDIA <= chat_utils._KNOWN_CONTENT_PART_FIELDS  # vLLM passes on unknown keys of a part


@given(text=st.text(st.sampled_from(f"<|[ab{SEPARATOR}é")))
def test_a_separator_follows_the_first_character_of_each_special_token(text: str) -> None:
    renderer = object.__new__(PlainTextRenderer)
    renderer.__dict__["_first_characters"] = frozenset("<|[")
    assert renderer._separated(text) == re.sub(r"[<|\[]", rf"\g<0>{SEPARATOR}", text)


def test_a_text_of_marks_is_separated_quickly(rendering: Rendering) -> None:
    def seconds(text: str) -> float:
        start = time.process_time()
        assert len(rendering._separated_message({"role": "user", "content": text})["content"]) >= len(text)
        return time.process_time() - start

    assert seconds("<" * 4_000_000) < 0.5  # one regular-expression match for each took 2 s


def deep(key: str, value: str) -> dict[str, Any]:
    return {"type": value, "parameters": {key: [{"url": value, "role": value, "image_url": {"url": value}}]}}


def test_tools_and_documents_in_a_template_are_text(rendering: Rendering, special: set[int]) -> None:
    """The template writes them as JSON, like those of Qwen."""
    tools = deep("<image>", "<|endoftext|>")
    params = ChatParams(chat_template_kwargs={"tools": [tools], "documents": [tools]})
    calls = [{"type": "function", "function": {"name": "<image>", "arguments": tools}}]
    message = {"role": "assistant", "content": None, "tools": [tools], "<image>": 1}
    (separated,), given = rendering._for_template([{**message, "tool_calls": iter(calls)}], params)
    written = [given.chat_template_kwargs, separated]
    assert not special & set(rendering._tokens(json.dumps(written, ensure_ascii=False), has_images=True))
    assert _joined(written) == [
        {"tools": [tools], "documents": [tools]},
        {**message, "tool_calls": calls},
    ]


@pytest.mark.parametrize(
    ("arguments", "read"),
    [
        (r'{"\u003cimage>": "\u003c|endoftext|>"}', {"<image>": "<|endoftext|>"}),
        ("no JSON", None),
        ("[" * 100_000, None),
        ({"a": "<image>"}, {"a": "<image>"}),
    ],
)
def test_the_arguments_of_a_call_cannot_hide_special_tokens(
    rendering: Rendering, special: set[int], arguments: object, read: object
) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    message = rendering._separated_message({"role": "assistant", "tool_calls": [call]})
    passed_on = message["tool_calls"][0]["function"]["arguments"]
    assert _joined(passed_on) == read
    assert not special & set(rendering._tokens(json.dumps(passed_on, ensure_ascii=False), has_images=True))


@pytest.fixture
def pythons_recursion_limit() -> Iterator[None]:
    """The recursion limit of a server. torch's compiler, which other tests run here, raises it."""
    raised = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)
    yield
    sys.setrecursionlimit(raised)


@pytest.mark.usefixtures("pythons_recursion_limit")
def test_deeply_nested_documents_are_refused(rendering: Rendering) -> None:
    tower: object = "x"
    for _ in range(900):  # as deep as the server's check of the body allows
        tower = [tower]
    for messages, documents in ([[{"role": "user", "content": tower}], None], [[], tower]):
        with pytest.raises(VLLMValidationError, match="nested too deeply"):
            rendering._for_template(messages, ChatParams(chat_template_kwargs={"documents": documents}))


def test_a_completion_is_all_text(rendering: Rendering, special: set[int]) -> None:
    prompts = [{"prompt": "<image> and <|endoftext|>"}, {"prompt_token_ids": [1, 2]}]
    with_text, with_ids = asyncio.run(rendering.render_prompts_async(prompts))
    assert with_ids == prompts[1]
    assert not special & set(rendering._tokenize_prompt(with_text, SimpleNamespace())["prompt_token_ids"])


def test_tools_are_text(rendering: Rendering) -> None:
    tools = [{"type": "function", "function": {"name": "f", "description": "<image>"}}]
    params = ChatParams(chat_template_kwargs={"tools": tools, "add_generation_prompt": True})
    kwargs = rendering._for_template([], params)[1].chat_template_kwargs
    assert kwargs["tools"][0]["function"] == {"name": "f", "description": f"<{SEPARATOR}image>"}
    assert kwargs["add_generation_prompt"] is True and kwargs["tools"][0]["type"] == "function"
