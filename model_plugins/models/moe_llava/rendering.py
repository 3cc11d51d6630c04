"""Turns messages into tokens: a template's image marks become images, and a user's text stays text.

vLLM tokenizes a whole prompt at once, so `<image>` or `<|endoftext|>` in a message would act as it does in
the template: as an image's place, or as the end of a turn (CVE-2026-44222). Here the user's text is rendered
with SEPARATOR after each character that can begin a special token. Special tokens are then searched for in
the rendered text, and only after that the separators are removed.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.inputs import TextPrompt, TokensPrompt
from vllm.renderers.hf import HfRenderer
from vllm.renderers.params import ChatParams

from prismoe.model_plugins.models.moe_llava.processing import IMAGE_INDEX, IMAGE_MARK

SEPARATOR = "\ufdd0"
"""A code point that Unicode reserves for internal use. It is removed from a user's own text."""

MEDIA = frozenset({"type", "image_url", "video_url", "audio_url", "input_audio"})
"""The keys of a message's part whose values no template writes: its type, and the place of its image."""


class PlainTextRenderer(HfRenderer):
    """vLLM's renderer of chat templates, for prompts that are untrusted input.

    It adds no tokens before or after a prompt, and neither do the tokenizers of these families.
    """

    def render_messages(self, messages: Any, params: ChatParams) -> tuple[Any, Any]:
        """The conversation, and its prompt with separators."""
        conversation, prompt = super().render_messages(*self._for_template(messages, params))
        return _joined(conversation), prompt

    async def render_messages_async(self, messages: Any, params: ChatParams) -> tuple[Any, Any]:
        """The conversation, and its prompt with separators."""
        conversation, prompt = await super().render_messages_async(*self._for_template(messages, params))
        return _joined(conversation), prompt

    def _for_template(self, messages: Any, params: ChatParams) -> tuple[list[Any], ChatParams]:
        """Messages and template arguments with separators. Raises VLLMValidationError if nested too deep."""
        try:
            separated = [self._separated_message(message) for message in messages]
            return separated, replace(
                params, chat_template_kwargs=self._separated(params.chat_template_kwargs)
            )
        except RecursionError:
            raise VLLMValidationError("The request's JSON is nested too deeply.") from None

    async def render_prompts_async(self, prompts: Sequence[Any]) -> list[Any]:
        """The prompts of completions over HTTP, with separators: all of their text is the user's."""
        rendered: list[Any] = await super().render_prompts_async(prompts)
        return [
            {**prompt, "prompt": self._separated(prompt["prompt"])} if _is_text(prompt) else prompt
            for prompt in rendered
        ]

    def _tokenize_prompt(self, prompt: TextPrompt, params: Any) -> TokensPrompt:
        tokens = self._tokens(prompt["prompt"], has_images="multi_modal_data" in prompt)
        prompt["prompt"] = _joined(prompt["prompt"])
        return self._build_tokens_prompt(tokens, prompt)

    def _tokens(self, text: str, has_images: bool) -> list[int]:
        """The ids of a rendered text, with IMAGE_INDEX for each image mark if it has images.

        The text between two marks is tokenized separately, as in the authors' code: a mark is not a token of
        the original tokenizers, so its characters would merge with their neighbours.
        """
        tokenizer = self.get_tokenizer()
        ids = self._special_tokens | ({IMAGE_MARK: IMAGE_INDEX} if has_images else {})
        tokens: list[int] = []
        for piece in _pattern(ids).split(text):
            if piece in ids:
                tokens.append(ids[piece])
            elif plain := _joined(piece):
                tokens += tokenizer.encode(plain, add_special_tokens=False, split_special_tokens=True)
        return tokens

    @cached_property
    def _special_tokens(self) -> dict[str, int]:
        """The special tokens and their ids, without the image mark. A user's text must not produce them."""
        added: dict[int, Any] = self.get_tokenizer().added_tokens_decoder
        return {str(token): id for id, token in added.items() if token.special and str(token) != IMAGE_MARK}

    @cached_property
    def _first_characters(self) -> frozenset[str]:
        return frozenset(token[0] for token in (IMAGE_MARK, *self._special_tokens))

    def _separated_message(self, message: dict[str, Any]) -> dict[str, Any]:
        """A message with separators in every text that a template may write."""
        ways = {"content": self._separated_content, "tool_calls": self._separated_calls}
        return {self._separated(key): ways.get(key, self._separated)(each) for key, each in message.items()}

    def _separated_content(self, content: Any) -> Any:
        if not _is_list(content):
            return self._separated(content)
        return [self._separated(part, MEDIA) for part in content]

    def _separated_calls(self, calls: Any) -> Any:
        if not _is_list(calls):
            return self._separated(calls)
        return [self._separated(_read_call(call)) for call in calls]

    def _separated(self, value: Any, but: frozenset[str] = frozenset()) -> Any:
        """The value with separators in each text, also in keys, but not in the values of the keys `but`."""
        if isinstance(value, str):
            for first in self._first_characters:
                value = value.replace(first, first + SEPARATOR)
            return value
        if isinstance(value, dict):
            return {
                self._separated(key): each if key in but else self._separated(each)
                for key, each in value.items()
            }
        if _is_list(value):
            return [self._separated(each) for each in value]
        return value


def _pattern(tokens: Iterable[str]) -> re.Pattern[str]:
    """A pattern that splits a text around each of these tokens, the longest token first."""
    return re.compile(f"({'|'.join(map(re.escape, sorted(tokens, key=len, reverse=True)))})")


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple | Iterator)  # pydantic reads the parts of a message lazily


def _read_call(call: Any) -> Any:
    """A tool call with its arguments parsed, as vLLM does later: a JSON escape could hide a mark."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    except (ValueError, RecursionError):
        arguments = None  # vLLM then gives the template no arguments.
    return {**call, "function": {**function, "arguments": arguments}}


def _joined(value: Any) -> Any:
    """The value without separators."""
    if isinstance(value, str):
        return value.replace(SEPARATOR, "")
    if isinstance(value, dict):
        return {_joined(key): _joined(each) for key, each in value.items()}
    return [_joined(each) for each in value] if isinstance(value, list) else value


def _is_text(prompt: Any) -> bool:
    return isinstance(prompt.get("prompt"), str) and "multi_modal_data" not in prompt
