"""Models of OpenAI's chat messages, their parts, and calls of tools."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, Tag, model_validator

from prismoe.server.requests.errors import PLACE, fault
from prismoe.server.requests.models import (
    TEXT_OR_LIST,
    Medium,
    Message,
    MessagePart,
    NonEmpty,
    Part,
    chosen_by,
    one_of,
    text_or_list,
)
from prismoe.server.requests.tools import ToolMessage

ROLES = ("system", "developer", "user", "assistant", "tool")


class TextPart(MessagePart):
    """A text."""

    type: Literal["text"]
    text: str


class RefusalPart(MessagePart):
    """An earlier refusal of the model."""

    type: Literal["refusal"]
    refusal: str


class URL(Part):
    """The URL of an image. `detail` is ignored, because the model decides an image's resolution."""

    url: NonEmpty
    detail: Any = Field(default=None, exclude=True)


class ImagePart(Medium):
    """An image."""

    modality: ClassVar[str] = "image"
    type: Literal["image_url"]
    image_url: URL


class VideoURL(Part):
    """The URL of a video."""

    url: NonEmpty


class VideoPart(Medium):
    """A video. This is vLLM's own kind of part: OpenAI has no videos."""

    modality: ClassVar[str] = "video"
    type: Literal["video_url"]
    video_url: VideoURL


ChatPart = Annotated[
    Annotated[TextPart, Tag("<text>")]
    | Annotated[RefusalPart, Tag("<refusal>")]
    | Annotated[ImagePart, Tag("<image_url>")]
    | Annotated[VideoPart, Tag("<video_url>")],
    chosen_by("type"),
    one_of("type", "parts", "text", "refusal", "image_url", "video_url"),
]

Content = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[list[ChatPart], Tag("<list>")],
    TEXT_OR_LIST,
    text_or_list("parts"),
]


class PromptMessage(Message):
    """A message for the model."""

    role: Literal["system", "developer", "user"]
    content: Content
    name: str | None = None


def _check_arguments(arguments: Any) -> Any:
    if not isinstance(arguments, str | dict | None):
        raise fault(f"{PLACE} must be a JSON text or an object.")
    return arguments


class Function(Message):
    """A function and its arguments, as a JSON text or an object."""

    name: str
    arguments: Annotated[Any, BeforeValidator(_check_arguments)] = None


class ToolCall(ToolMessage):
    """A call that the model made."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: Function


class AssistantMessage(Message):
    """An earlier answer of the model. It has a text, or calls a tool."""

    role: Literal["assistant"]
    content: Content | None = None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    name: str | None = None

    @model_validator(mode="after")
    def _check(self) -> "AssistantMessage":
        parts = (self.content, self.refusal, self.reasoning, self.reasoning_content, self.tool_calls or None)
        if all(part is None for part in parts):
            raise fault(f"{PLACE} is empty: give it a content or tool_calls.")
        return self


class ToolResult(ToolMessage):
    """The result of a call."""

    role: Literal["tool"]
    tool_call_id: str
    content: Content
    name: str | None = None


ChatMessage = Annotated[
    Annotated[PromptMessage, Tag("<system>")]
    | Annotated[PromptMessage, Tag("<developer>")]
    | Annotated[PromptMessage, Tag("<user>")]
    | Annotated[AssistantMessage, Tag("<assistant>")]
    | Annotated[ToolResult, Tag("<tool>")],
    chosen_by("role"),
    one_of("role", "roles", *ROLES),
]

Conversation = Annotated[list[ChatMessage], Field(min_length=1)]
