"""Models of Anthropic's messages, their blocks, and the sources of images."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, Tag

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


class TextBlock(MessagePart):
    """A text."""

    type: Literal["text"]
    text: NonEmpty
    citations: Any = Field(default=None, exclude=True)


class Base64Source(Part):
    """An image that the request contains."""

    type: Literal["base64"]
    media_type: Annotated[str, Field(pattern=r"^image/[a-z0-9.+-]+$")]
    data: NonEmpty


class URLSource(Part):
    """An image at a URL."""

    type: Literal["url"]
    url: NonEmpty


class ImageBlock(Medium):
    """An image."""

    modality: ClassVar[str] = "image"
    type: Literal["image"]
    source: Annotated[
        Annotated[Base64Source, Tag("<base64>")] | Annotated[URLSource, Tag("<url>")],
        chosen_by("type"),
        one_of("type", "sources", "base64", "url"),
    ]


class ToolUseBlock(ToolMessage, MessagePart):
    """A call that the model made."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


ResultBlock = Annotated[
    Annotated[TextBlock, Tag("<text>")] | Annotated[ImageBlock, Tag("<image>")],
    chosen_by("type"),
    one_of("type", "blocks of a result", "text", "image"),
]


class ToolResultBlock(ToolMessage, MessagePart):
    """The result of a call."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: Annotated[
        Annotated[str, Tag("<text>")] | Annotated[list[ResultBlock], Tag("<list>")],
        TEXT_OR_LIST,
        text_or_list("blocks"),
    ] = ""
    is_error: bool | None = None


class ThinkingBlock(MessagePart):
    """The model's thoughts."""

    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class RedactedThinkingBlock(MessagePart):
    """The model's thoughts, encrypted."""

    type: Literal["redacted_thinking"]
    data: str


UserBlock = Annotated[
    Annotated[TextBlock, Tag("<text>")]
    | Annotated[ImageBlock, Tag("<image>")]
    | Annotated[ToolResultBlock, Tag("<tool_result>")],
    chosen_by("type"),
    one_of("type", "blocks of a user", "text", "image", "tool_result"),
]

AssistantBlock = Annotated[
    Annotated[TextBlock, Tag("<text>")]
    | Annotated[ToolUseBlock, Tag("<tool_use>")]
    | Annotated[ThinkingBlock, Tag("<thinking>")]
    | Annotated[RedactedThinkingBlock, Tag("<redacted_thinking>")],
    chosen_by("type"),
    one_of("type", "blocks of an assistant", "text", "tool_use", "thinking", "redacted_thinking"),
]

System = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[
        list[Annotated[TextBlock, one_of("type", "blocks of a system prompt", "text")]], Tag("<list>")
    ],
    TEXT_OR_LIST,
    text_or_list("blocks"),
]


class UserMessage(Message):
    """A message of the user."""

    role: Literal["user"]
    content: Annotated[
        Annotated[str, Tag("<text>")] | Annotated[list[UserBlock], Tag("<list>")],
        TEXT_OR_LIST,
        text_or_list("blocks"),
    ]


class AssistantMessage(Message):
    """A message of the model."""

    role: Literal["assistant"]
    content: Annotated[
        Annotated[str, Tag("<text>")] | Annotated[list[AssistantBlock], Tag("<list>")],
        TEXT_OR_LIST,
        text_or_list("blocks"),
    ]


class SystemMessage(Message):
    """An instruction among the messages. vLLM accepts these."""

    role: Literal["system"]
    content: System


AnthropicMessage = Annotated[
    Annotated[UserMessage, Tag("<user>")]
    | Annotated[AssistantMessage, Tag("<assistant>")]
    | Annotated[SystemMessage, Tag("<system>")],
    chosen_by("role"),
    one_of("role", "roles", "user", "assistant", "system"),
]

AnthropicConversation = Annotated[list[AnthropicMessage], Field(min_length=1)]
