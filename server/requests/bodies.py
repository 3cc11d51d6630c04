"""The body of each route that takes one, and what is wrong with one that can't be read."""

from collections.abc import Collection
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError, from_json, to_json

from prismoe.server.requests.anthropic import AnthropicConversation, System
from prismoe.server.requests.chat import Conversation
from prismoe.server.requests.models import MODALITIES, Message, is_tag, shortened
from prismoe.server.requests.responses import ResponsesInput

MOST_ANSWERS = 128
"""The most that OpenAI takes for `n`. Here the prompts of a list count, too."""


class Unreadable(Exception):
    """A request can't be read; the message is a sentence for its client."""


class Body(Message):
    """What the bodies of all routes share. Keys that are not listed are vLLM's to read or to ignore."""

    n: int | None = None
    media_io_kwargs: Any = None
    previous_input_messages: Any = None

    @field_validator("media_io_kwargs", "previous_input_messages")
    @classmethod
    def _refuse(cls, value: Any) -> Any:
        # With the first, a client would say how media are read; in the second, vLLM takes unread messages.
        if value:
            raise PydanticCustomError("refused", "{path} is not taken from requests: leave it out.")
        return value

    @property
    def prompts(self) -> int:
        """How many prompts or conversations it holds."""
        return 1

    @model_validator(mode="after")
    def _check_answers(self) -> "Body":
        answers = self.prompts * (1 if self.n is None else self.n)
        if answers > MOST_ANSWERS:
            raise PydanticCustomError(
                "answers",
                "The request asks for {answers} answers: the most is {most}.",
                {"answers": answers, "most": MOST_ANSWERS},
            )
        return self


class ChatBody(Body):
    """Chat completions, and inspections of them."""

    messages: Conversation


class BatchBody(Body):
    """Chat completions of several conversations."""

    messages: Annotated[list[Conversation], Field(min_length=1)]

    @property
    def prompts(self) -> int:
        """The conversations."""
        return len(self.messages)


class TokenizeBody(Body):
    """A conversation, or a text, to be tokenized."""

    messages: Conversation | None = None
    prompt: str | None = None

    @model_validator(mode="after")
    def _check(self) -> "TokenizeBody":
        if (self.messages is None) == (self.prompt is None):
            raise PydanticCustomError("tokenize", "The request has to hold either messages or a prompt.")
        return self


class DetokenizeBody(Body):
    """Tokens whose text is asked for."""

    tokens: list[Annotated[int, Field(ge=0, lt=2**31)]]


def _check_prompt(prompt: Any) -> Any:
    lists = prompt if isinstance(prompt, list) and prompt and isinstance(prompt[0], list) else [prompt]
    texts = isinstance(prompt, str) or (
        isinstance(prompt, list) and all(isinstance(each, str) for each in prompt)
    )
    if not texts and not all(
        isinstance(each, list) and all(type(id) is int for id in each) for each in lists
    ):
        message = "{path} has to be a text, a list of token ids, or a list of texts or of such lists."
        raise PydanticCustomError("prompt", message)
    return prompt


class CompletionBody(Body):
    """Completions of texts or of lists of token ids."""

    prompt: Annotated[Any, BeforeValidator(_check_prompt)]

    @property
    def prompts(self) -> int:
        """The prompts: a list of token ids is one."""
        is_one = isinstance(self.prompt, str) or all(isinstance(each, int) for each in self.prompt)
        return 1 if is_one else len(self.prompt)


class AnthropicBody(Body):
    """Anthropic's messages, to be answered or counted."""

    messages: AnthropicConversation
    system: System | None = None


class ResponsesBody(Body):
    """OpenAI's responses."""

    input: ResponsesInput


BODIES: dict[str, type[Body]] = {
    "/detokenize": DetokenizeBody,
    "/tokenize": TokenizeBody,
    "/v1/chat/completions": ChatBody,
    "/v1/chat/completions/batch": BatchBody,
    "/v1/completions": CompletionBody,
    "/v1/messages": AnthropicBody,
    "/v1/messages/count_tokens": AnthropicBody,
    "/v1/responses": ResponsesBody,
    "/v1/routing/inspect": ChatBody,
}
"""By path. A route that is not here takes no body."""

READ = {"messages", "system", "input"}
"""The keys whose values vLLM gets as they were read here."""


class ReadRequest(NamedTuple):
    """A request as it was read, and the body that vLLM gets."""

    request: dict[str, Any]
    body: bytes


def read_request(path: str, body: bytes, modalities: Collection[str]) -> ReadRequest:
    """The request in a body, with nothing in its messages but what is listed. Raises Unreadable.

    `modalities` are those of media that the served model takes.
    """
    try:
        request = from_json(body)
    except ValueError as error:
        if "recursion limit" in str(error):
            raise Unreadable("The request's JSON is nested too deeply.") from error
        raise Unreadable(f"The request's body is not JSON: {error}.") from error
    if not isinstance(request, dict):
        raise Unreadable("The request's body has to be a JSON object.")
    try:
        read = BODIES[path].model_validate(request, context={MODALITIES: modalities})
    except ValidationError as error:
        raise Unreadable(_sentence(error.errors(include_url=False)[0])) from error
    request |= read.model_dump(include=READ, exclude_unset=True)
    return ReadRequest(request, to_json(request))


def _sentence(error: ErrorDetails) -> str:
    path, kind = _path(error), error["type"]
    context: dict[str, Any] = error.get("ctx", {})
    match kind:
        case "missing":
            return f"{path} is missing."
        case "extra_forbidden" | "none_required":
            return f"{path} is not taken: leave it out of the request."
        case "string_type":
            return f"{path} has to be a text."
        case "int_type":
            return f"{path} has to be a whole number."
        case "greater_than_equal" | "less_than":
            return f"{path} is not the id of a token."
        case "list_type":
            return f"{path} has to be a list."
        case "dict_type" | "model_type":
            return f"{path} has to be an object."
        case "literal_error":
            return f"{path} has to be {context['expected']}."
        case "too_short" | "string_too_short":
            return f"{path} is empty."
        case "string_pattern_mismatch":
            return f"{path} has to match {context['pattern']}."
    return error["msg"].replace("{path}", path)


def _path(error: ErrorDetails) -> str:
    """An error's place as one would write it in Python, such as `messages[0].content`."""
    last = error["loc"][-1:] if error["type"] == "extra_forbidden" else ()
    steps = [step for step in error["loc"][: len(error["loc"]) - len(last)] if not is_tag(step)]
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
    return (text + "".join(f".{shortened(str(step))}" for step in last)).removeprefix(".")
