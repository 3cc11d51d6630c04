"""OpenAI's chat messages: roles, parts, images, videos and calls of tools."""

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
    one_of,
    text_or_list,
    told_by,
)
from prismoe.server.requests.tools import OfTools

ROLES = ("system", "developer", "user", "assistant", "tool")


class TextPart(MessagePart):
    """A text."""

    type: Literal["text"]
    text: str


class RefusalPart(MessagePart):
    """What the model refused before."""

    type: Literal["refusal"]
    refusal: str


class URL(Part):
    """Where an image is. `detail` is ignored: every image has the resolution that the model wants."""

    url: NonEmpty
    detail: Any = Field(default=None, exclude=True)


class ImagePart(Medium):
    """An image."""

    modality: ClassVar[str] = "image"
    type: Literal["image_url"]
    image_url: URL


class VideoURL(Part):
    """Where a video is."""

    url: NonEmpty


class VideoPart(Medium):
    """A video, as vLLM's clients send it: OpenAI has none."""

    modality: ClassVar[str] = "video"
    type: Literal["video_url"]
    video_url: VideoURL


ChatPart = Annotated[
    Annotated[TextPart, Tag("<text>")]
    | Annotated[RefusalPart, Tag("<refusal>")]
    | Annotated[ImagePart, Tag("<image_url>")]
    | Annotated[VideoPart, Tag("<video_url>")],
    told_by("type"),
    one_of("type", "parts", "text", "refusal", "image_url", "video_url"),
]

Content = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[list[ChatPart], Tag("<list>")],
    TEXT_OR_LIST,
    text_or_list("parts"),
]


class Told(Message):
    """What the model is told."""

    role: Literal["system", "developer", "user"]
    content: Content
    name: str | None = None


def _check_arguments(arguments: Any) -> Any:
    if not isinstance(arguments, str | dict | None):
        raise fault(f"{PLACE} has to be a text that holds JSON, or an object.")
    return arguments


class Function(Message):
    """A function and its arguments, as JSON or read."""

    name: str
    arguments: Annotated[Any, BeforeValidator(_check_arguments)] = None


class ToolCall(OfTools):
    """A call that the model made."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: Function


class Answered(Message):
    """What the model answered. It says something, or calls a tool."""

    role: Literal["assistant"]
    content: Content | None = None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    name: str | None = None

    @model_validator(mode="after")
    def _check(self) -> "Answered":
        said = (self.content, self.refusal, self.reasoning, self.reasoning_content, self.tool_calls or None)
        if all(each is None for each in said):
            raise fault(f"{PLACE} says nothing: give it a content or tool_calls.")
        return self


class ToolResult(OfTools):
    """What a call gave."""

    role: Literal["tool"]
    tool_call_id: str
    content: Content
    name: str | None = None


ChatMessage = Annotated[
    Annotated[Told, Tag("<system>")]
    | Annotated[Told, Tag("<developer>")]
    | Annotated[Told, Tag("<user>")]
    | Annotated[Answered, Tag("<assistant>")]
    | Annotated[ToolResult, Tag("<tool>")],
    told_by("role"),
    one_of("role", "roles", *ROLES),
]

Conversation = Annotated[list[ChatMessage], Field(min_length=1)]
