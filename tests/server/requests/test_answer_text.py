"""The text of answers from the detokenizers of the bundled model's tokenizer."""

from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer
from vllm.sampling_params import SamplingParams
from vllm.v1.engine.detokenizer import FastIncrementalDetokenizer

from prismoe.model_plugins.files.bundled import bundled_checkpoint
from prismoe.server.requests.answer_text import continues, mend_answers

TOKENIZER = Tokenizer.from_file(str(bundled_checkpoint() / "tokenizer.json"))


class Processor:
    """The used part of vLLM's output processor."""

    def __init__(self) -> None:
        self.request_states: dict[str, Any] = {}

    def add_request(self, request: Any, *_: Any) -> None:
        tokenizer: Any = SimpleNamespace(_tokenizer=TOKENIZER)
        detokenizer = FastIncrementalDetokenizer(tokenizer, request)
        self.request_states[request.request_id] = SimpleNamespace(detokenizer=detokenizer)


def detokenizer(prompt: list[int], request_id: str, mode: str = "prismoe") -> FastIncrementalDetokenizer:
    """A detokenizer with prismoe's fixes. Stop strings delay the text of a stream."""
    processor = Processor()
    config = SimpleNamespace(model_config=SimpleNamespace(tokenizer_mode=mode))
    mend_answers(SimpleNamespace(output_processor=processor, vllm_config=config))  # type: ignore[arg-type]
    params = SamplingParams(stop=["never"])
    request = SimpleNamespace(request_id=request_id, prompt_token_ids=prompt, sampling_params=params)
    processor.add_request(request, None)
    mended: FastIncrementalDetokenizer = processor.request_states[request_id].detokenizer
    return mended


def answered(mended: FastIncrementalDetokenizer, text: str, delta: bool) -> str:
    """The text of an answer, token by token."""
    reported = []
    ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    for number, token in enumerate(ids, 1):
        mended.update([token], stop_terminated=False)
        reported.append(mended.get_next_output_text(finished=number == len(ids), delta=delta))
    return "".join(reported) if delta else reported[-1]


PROMPT = TOKENIZER.encode("USER: Hi ASSISTANT:").ids


@pytest.mark.parametrize("delta", [True, False])
@pytest.mark.parametrize(
    ("text", "reported"),
    [
        (" maple leaf", "maple leaf"),
        ("maple leaf", "maple leaf"),
        ("  two", " two"),
        (" ", ""),
        ("\n a", "\n a"),
        (" a b  c ", "a b  c "),
        (' {"a": 1}', '{"a": 1}'),
    ],
)
def test_an_answer_has_no_space_after_the_colon(text: str, reported: str, delta: bool) -> None:
    for request_id in ("chatcmpl-1", "resp_1"):
        assert answered(detokenizer(PROMPT, request_id), text, delta) == reported
    assert answered(detokenizer(PROMPT, "cmpl-1-0"), text, delta) == text
    assert answered(detokenizer(PROMPT, "chatcmpl-1", mode="hf"), text, delta) == text


def test_a_message_that_is_continued_keeps_its_space() -> None:
    token = continues.set(True)
    try:
        assert answered(detokenizer(PROMPT, "chatcmpl-1"), " leaf", delta=True) == " leaf"
    finally:
        continues.reset(token)


@pytest.mark.parametrize("delta", [True, False])
@pytest.mark.parametrize(
    ("prompt", "text", "reported"),
    [
        (
            [1135, 284, 360, 279, 85, 222, 174, 255],
            "ing",
            "\ufffding",
        ),  # "hello secret " and two bytes of four
        ([*TOKENIZER.encode("a 日").ids[:-1]], "ing", "\ufffding"),
        ([174], "ing", "\ufffding"),
        ([174] * 30, "ing", "ing"),
        (TOKENIZER.encode("a 日").ids, "ing", "ing"),
        (TOKENIZER.encode("hello").ids, " there", " there"),
        ([], "ing", "ing"),
    ],
)
def test_a_prompt_that_ends_inside_a_character_adds_no_text(
    prompt: list[int], text: str, reported: str, delta: bool
) -> None:
    assert answered(detokenizer(prompt, "cmpl-1-0"), text, delta) == reported


def test_an_answer_completes_the_character_that_its_prompt_began() -> None:
    *began, last = TOKENIZER.encode("a 日").ids
    mended = detokenizer(began, "cmpl-1-0")
    mended.update([last], stop_terminated=False)
    assert mended.get_next_output_text(finished=True, delta=True) == "日"
