"""The model of each route's body, and the error for a body that can't be read."""

from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator
from pydantic_core import from_json, to_json
from pydantic_core.core_schema import ValidationInfo

from prismoe.server.requests.anthropic import AnthropicConversation, System
from prismoe.server.requests.chat import Conversation
from prismoe.server.requests.errors import PLACE, fault, sentence
from prismoe.server.requests.models import Message, Served
from prismoe.server.requests.responses import ResponsesInput
from prismoe.server.requests.tools import OffersTools

MAX_ANSWERS = 128
"""The most answers to a request: OpenAI's limit for `n`. Here it limits `n` times the number of prompts."""

REPLACED = {
    "functions": "tools",
    "function_call": "tool_choice",
    **dict.fromkeys(
        ("guided_json", "guided_regex", "guided_choice", "guided_grammar", "guided_whitespace_pattern"),
        "structured_outputs",
    ),
}
"""Old keys that vLLM would ignore now, and the keys that replaced them."""

TEMPLATE_ARGUMENTS = {
    "messages",
    "conversation",
    "tools",
    "chat_template",
    "tokenize",
    "padding",
    "truncation",
    "max_length",
    "return_tensors",
    "return_dict",
    "return_assistant_tokens_mask",
    "tokenizer_kwargs",
}
"""The arguments that vLLM itself passes to transformers' `apply_chat_template`."""


class Unreadable(Exception):
    """A request can't be read. The message is a sentence for the client."""


class Body(Message):
    """The keys that the bodies of all routes share. vLLM reads or ignores all other keys."""

    n: Annotated[int, Field(le=MAX_ANSWERS)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    media_io_kwargs: Any = None
    previous_input_messages: Any = None
    mm_processor_kwargs: Any = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_replaced(cls, body: dict[str, Any]) -> dict[str, Any]:
        for old, new in REPLACED.items():
            if body.get(old) is not None:
                raise fault(f"{old} is no longer supported: send {new} instead.")
        return body

    @field_validator("media_io_kwargs", "previous_input_messages")
    @classmethod
    def _refuse(cls, value: Any) -> Any:
        # With the first, a client could decide how media are read. The second has messages without checks.
        if value:
            raise fault(f"{PLACE} is not allowed in requests: leave it out.")
        return value

    @field_validator("mm_processor_kwargs")
    @classmethod
    def _check_routing(cls, kwargs: Any, info: ValidationInfo[Served]) -> Any:
        if isinstance(kwargs, dict) and "routing" in kwargs and not info.context.images_choose_routing:
            raise fault(f"{PLACE}.routing is only for MoE-LLaVA models, and this is another: leave it out.")
        return kwargs

    @field_validator("chat_template_kwargs")
    @classmethod
    def _check_template_kwargs(cls, kwargs: dict[str, Any] | None) -> dict[str, Any] | None:
        if refused := TEMPLATE_ARGUMENTS & set(kwargs or ()):
            raise fault(f"{PLACE} can't contain {min(refused)}: leave it out.")
        return kwargs

    @property
    def prompts(self) -> int:
        """The number of prompts or conversations."""
        return 1

    @model_validator(mode="after")
    def _check_answers(self) -> "Body":
        answers = self.prompts * (1 if self.n is None else self.n)
        if answers > MAX_ANSWERS:
            raise fault(f"The request asks for {answers} answers: ask for at most {MAX_ANSWERS}.")
        return self


def _with_schema(response_format: Any) -> Any:
    """Turn a `json_object` with a schema, which vLLM would ignore, into a `json_schema`."""
    match response_format:
        case {"type": "json_object", "schema": dict(schema)}:
            return {"type": "json_schema", "json_schema": {"name": "schema", "schema": schema}}
    return response_format


class ChatBody(OffersTools, Body):
    """The body of a chat completion or of an inspection."""

    messages: Conversation
    response_format: Annotated[Any, BeforeValidator(_with_schema)] = None


class BatchBody(OffersTools, Body):
    """The body of chat completions of several conversations."""

    messages: Annotated[list[Conversation], Field(min_length=1)]

    @property
    def prompts(self) -> int:
        """The number of conversations."""
        return len(self.messages)


class TokenizeBody(OffersTools, Body):
    """A conversation or a text to tokenize."""

    is_answered = False
    messages: Conversation | None = None
    prompt: str | None = None

    @model_validator(mode="after")
    def _check(self) -> "TokenizeBody":
        if (self.messages is None) == (self.prompt is None):
            raise fault("The request must have either messages or a prompt.")
        return self


class DetokenizeBody(Body):
    """The ids of tokens to turn into text."""

    tokens: list[Annotated[int, Field(ge=0, lt=2**31)]]


def _check_prompt(prompt: Any) -> Any:
    lists = prompt if isinstance(prompt, list) and prompt and isinstance(prompt[0], list) else [prompt]
    texts = isinstance(prompt, str) or (
        isinstance(prompt, list) and all(isinstance(each, str) for each in prompt)
    )
    if not texts and not all(
        isinstance(each, list) and all(type(id) is int for id in each) for each in lists
    ):
        raise fault(
            f"{PLACE} must be a text, a list of token ids, a list of texts, or a list of lists of token ids."
        )
    return prompt


class CompletionBody(Body):
    """The body of completions of texts or of lists of token ids."""

    prompt: Annotated[Any, BeforeValidator(_check_prompt)]

    @property
    def prompts(self) -> int:
        """The number of prompts. A list of token ids is one prompt."""
        is_one = isinstance(self.prompt, str) or all(isinstance(each, int) for each in self.prompt)
        return 1 if is_one else len(self.prompt)


class AnthropicBody(OffersTools, Body):
    """The body of Anthropic's messages."""

    messages: AnthropicConversation
    system: System | None = None


class CountBody(AnthropicBody):
    """The body of Anthropic's count of tokens."""

    is_answered = False


class ResponsesBody(OffersTools, Body):
    """The body of OpenAI's responses."""

    input: ResponsesInput


BODIES: dict[str, type[Body]] = {
    "/detokenize": DetokenizeBody,
    "/tokenize": TokenizeBody,
    "/v1/chat/completions": ChatBody,
    "/v1/chat/completions/batch": BatchBody,
    "/v1/completions": CompletionBody,
    "/v1/messages": AnthropicBody,
    "/v1/messages/count_tokens": CountBody,
    "/v1/responses": ResponsesBody,
    "/v1/routing/inspect": ChatBody,
}
"""The model of the body, by path. All other routes take no body."""

REWRITTEN = {"messages", "system", "input", "response_format"}
"""The keys whose values vLLM gets as the models read them, not as the client sent them."""


class ReadRequest(NamedTuple):
    """A checked request, and the body that vLLM gets."""

    request: dict[str, Any]
    body: bytes


def read_request(path: str, body: bytes, served: Served) -> ReadRequest:
    """Read a request's body and leave out all in its messages that is not listed. Raises Unreadable."""
    try:
        request = from_json(body)
    except ValueError as error:
        if "recursion limit" in str(error):
            raise Unreadable("The request's JSON is nested too deeply: send fewer levels.") from error
        raise Unreadable(f"The request's body is not JSON: {error}.") from error
    if not isinstance(request, dict):
        raise Unreadable("The request's body must be a JSON object.")
    try:
        read = BODIES[path].model_validate(request, context=served)
    except ValidationError as error:
        raise Unreadable(sentence(error.errors(include_url=False), request)) from error
    request |= read.model_dump(include=REWRITTEN, exclude_unset=True)
    return ReadRequest(request, to_json(request))
