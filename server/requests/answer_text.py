"""Corrects the text of answers: vLLM's detokenizer can add text that is not part of the answer."""

from contextvars import ContextVar
from typing import Any

from tokenizers.decoders import DecodeStream
from vllm.engine.protocol import EngineClient
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.detokenizer import FastIncrementalDetokenizer, IncrementalDetokenizer

from prismoe.model_plugins.models.moe_llava.names import RENDERER
from prismoe.model_plugins.vllm_seams.front.answers import tell_answers

COMPLETION = "cmpl-"
"""The beginning of vLLM's ids of completions. All other requests have conversations."""

CUT_CHARACTER = "\N{REPLACEMENT CHARACTER}"
"""The end of a decoded text whose last character lacks bytes."""

LONGEST_CHARACTER = 4
"""The most bytes of a character, and so its most tokens."""

continues: ContextVar[bool] = ContextVar("prismoe_continues", default=False)
"""Whether the present request makes the model continue a message (`continue_final_message`)."""


def mend_answers(engine: EngineClient) -> None:
    """Correct the detokenizer of each answer that the engine starts.

    MoE-LLaVA's prompts end in "ASSISTANT:", so an answer's first token begins with a space, which is left
    out. If a prompt ends inside a character, vLLM's detokenizer would put the whole prompt before the
    answer's text.
    """
    begins_with_a_space = engine.vllm_config.model_config.tokenizer_mode == RENDERER

    def mend(request: EngineCoreRequest, index: int, state: Any) -> None:
        if isinstance(state.detokenizer, FastIncrementalDetokenizer):
            _prime(state.detokenizer, request.prompt_token_ids or [])
        if begins_with_a_space and not request.request_id.startswith(COMPLETION) and not continues.get():
            _leave_out_space(state.detokenizer)

    tell_answers(engine, mend)


def _prime(detokenizer: FastIncrementalDetokenizer, prompt: list[int]) -> None:
    """Start a detokenizer at the prompt's last whole character, or without a prompt if none is near."""
    tokenizer, skip = detokenizer.tokenizer, detokenizer.skip_special_tokens

    def ends_whole(ids: list[int]) -> bool:
        text = tokenizer.decode(ids[-2 * LONGEST_CHARACTER :], skip_special_tokens=skip)
        return not text.endswith(CUT_CHARACTER)

    if ends_whole(prompt):
        return
    detokenizer.stream = DecodeStream(skip_special_tokens=skip)
    for whole in range(len(prompt) - 1, max(-1, len(prompt) - LONGEST_CHARACTER), -1):
        if ends_whole(prompt[:whole]):
            detokenizer.stream = DecodeStream(ids=prompt[:whole], skip_special_tokens=skip)
            for token in prompt[whole:]:
                detokenizer.decode_next(token)
            return


def _leave_out_space(detokenizer: IncrementalDetokenizer) -> None:
    """Remove a space at the beginning of the detokenizer's text."""
    next_text = detokenizer.get_next_output_text
    began = False

    def text_without_space(finished: bool, delta: bool) -> str:
        nonlocal began
        text = next_text(finished, delta)
        if began and delta:
            return text
        began = began or text != ""
        return text.removeprefix(" ")

    detokenizer.get_next_output_text = text_without_space  # type: ignore[method-assign]
