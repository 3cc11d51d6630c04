"""Models of the input items of OpenAI's responses API."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, Tag, field_serializer

from prismoe.server.requests.models import (
    TEXT_OR_LIST,
    Medium,
    Message,
    MessagePart,
    NonEmpty,
    chosen_by,
    one_of,
    text_or_list,
)
from prismoe.server.requests.tools import ToolMessage


class InputText(MessagePart):
    """A text for the model."""

    type: Literal["input_text"]
    text: str


class InputImage(Medium):
    """An image for the model. `detail` is ignored, as in chat."""

    modality: ClassVar[str] = "image"
    type: Literal["input_image"]
    image_url: NonEmpty
    detail: Any = Field(default=None, exclude=True)
    file_id: None = Field(default=None, exclude=True)


class OutputText(MessagePart):
    """A text of the model."""

    type: Literal["output_text"]
    text: str
    annotations: Any = Field(default=None, exclude=True)
    logprobs: Any = Field(default=None, exclude=True)


class OutputRefusal(MessagePart):
    """An earlier refusal of the model."""

    type: Literal["refusal"]
    refusal: str


InputPart = Annotated[
    Annotated[InputText, Tag("<input_text>")] | Annotated[InputImage, Tag("<input_image>")],
    chosen_by("type"),
    one_of("type", "parts", "input_text", "input_image"),
]

OutputPart = Annotated[
    Annotated[InputText, Tag("<input_text>")]
    | Annotated[OutputText, Tag("<output_text>")]
    | Annotated[OutputRefusal, Tag("<refusal>")],
    chosen_by("type"),
    one_of("type", "parts of an answer", "output_text", "refusal", "input_text"),
]

InputContent = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[list[InputPart], Tag("<list>")],
    TEXT_OR_LIST,
    text_or_list("parts"),
]


class PromptMessage(Message):
    """A message for the model."""

    role: Literal["system", "developer", "user"]
    content: InputContent
    type: Literal["message"] = "message"


class AssistantMessage(Message):
    """An earlier answer of the model. Its parts become one text, because vLLM reads only the first part."""

    role: Literal["assistant"]
    content: Annotated[
        Annotated[str, Tag("<text>")] | Annotated[list[OutputPart], Tag("<list>")],
        TEXT_OR_LIST,
        text_or_list("parts"),
    ]
    type: Literal["message"] = "message"

    @field_serializer("content")
    def _as_text(self, content: str | list[InputText | OutputText | OutputRefusal]) -> str:
        if isinstance(content, str):
            return content
        return "".join(part.refusal if isinstance(part, OutputRefusal) else part.text for part in content)


class FunctionCall(ToolMessage):
    """A call that the model made."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None


class FunctionCallOutput(ToolMessage):
    """The result of a call."""

    type: Literal["function_call_output"]
    call_id: str
    output: InputContent


class Summary(Message):
    """A summary of the model's thoughts."""

    type: Literal["summary_text"]
    text: str


class Thought(Message):
    """A thought of the model."""

    type: Literal["reasoning_text"]
    text: str


class Reasoning(Message):
    """The model's thoughts before a call or an answer."""

    type: Literal["reasoning"]
    id: str | None = None
    summary: list[Summary]
    content: list[Thought] | None = None


def _with_type(item: Any) -> Any:
    """Give an item without a type the type message."""
    return {**item, "type": "message"} if isinstance(item, dict) and "type" not in item else item


MessageItem = Annotated[
    Annotated[PromptMessage, Tag("<system>")]
    | Annotated[PromptMessage, Tag("<developer>")]
    | Annotated[PromptMessage, Tag("<user>")]
    | Annotated[AssistantMessage, Tag("<assistant>")],
    chosen_by("role"),
    one_of("role", "roles", "system", "developer", "user", "assistant"),
]

Item = Annotated[
    Annotated[MessageItem, Tag("<message>")]
    | Annotated[FunctionCall, Tag("<function_call>")]
    | Annotated[FunctionCallOutput, Tag("<function_call_output>")]
    | Annotated[Reasoning, Tag("<reasoning>")],
    chosen_by("type"),
    one_of("type", "items", "message", "function_call", "function_call_output", "reasoning"),
    BeforeValidator(_with_type),
]

ResponsesInput = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[list[Item], Tag("<list>")],
    TEXT_OR_LIST,
    text_or_list("items"),
]
