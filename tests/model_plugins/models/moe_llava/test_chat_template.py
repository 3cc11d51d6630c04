"""The chat template writes the authors' prompt."""

import json
from typing import Any

import pytest
from transformers import AutoTokenizer

from prismoe.model_plugins.models.moe_llava.names import CHAT_TEMPLATE
from tests.model_plugins.engine import PHI

PROMPT = json.loads((PHI / "meta.json").read_text())["prompt"]
SYSTEM, QUESTION = PROMPT.split("USER: ")[0], "What is unusual about this image?"
IMAGE = {"type": "image"}


def render(messages: list[dict[str, Any]]) -> str:
    tokenizer = AutoTokenizer.from_pretrained(PHI)
    text: str = tokenizer.apply_chat_template(
        messages, chat_template=CHAT_TEMPLATE.read_text(), add_generation_prompt=True, tokenize=False
    )
    return text


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


@pytest.mark.parametrize(
    "content", [[IMAGE, text(QUESTION)], [text(QUESTION), IMAGE], f"<image>\n{QUESTION}"]
)
def test_one_image(content: object) -> None:
    assert render([{"role": "user", "content": content}]) == PROMPT


def test_several_turns_and_images() -> None:
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": [IMAGE, IMAGE, text("Are these alike?")]},
        {"role": "assistant", "content": "No."},
        {"role": "user", "content": "Why?"},
    ]
    turns = "USER: <image>\n<image>\nAre these alike? ASSISTANT: No.<|endoftext|>USER: Why? ASSISTANT:"
    assert render(messages) == SYSTEM + turns


def test_a_system_message_replaces_the_default_sentence() -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert render(messages) == "Be brief. USER: Hi ASSISTANT:"
    messages.insert(1, {"role": "developer", "content": "Be kind."})
    assert render(messages) == "Be brief. Be kind. USER: Hi ASSISTANT:"
