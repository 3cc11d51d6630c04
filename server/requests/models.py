"""What the models of all routes share: parts told by a key, media by modality, errors by place."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    field_validator,
    model_validator,
)
from pydantic_core.core_schema import ValidationInfo

from prismoe.server.requests.errors import PLACE, fault, shortened

NonEmpty = Annotated[str, Field(min_length=1)]

VIDEOS = "Send videos as parts of messages to /v1/chat/completions."


@dataclass(frozen=True)
class Served:
    """What the model and the server take: the context in which requests are read."""

    modalities: frozenset[str] = frozenset()
    """Those of media."""
    template_has_tools: bool = False
    """Whether the chat template writes tools, calls and their results."""
    reads_forced_calls: bool = False
    """Whether calls are read out of answers where a request forces one."""
    reads_calls: bool = False
    """Whether they are where the model has the choice."""
    images_choose_routing: bool = False
    """Whether a request may choose how its images are routed, as MoE-LLaVA's processor lets it."""


class Message(BaseModel):
    """A message or a whole body: an unlisted key is left out, and no value is converted."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


class Part(BaseModel):
    """A part of a message: an unlisted key is refused, and no value is converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class MessagePart(Part):
    """A part that stands in a message's own list."""

    cache_control: Any = Field(default=None, exclude=True)
    """Anthropic's hint, which clients' libraries send to all servers. It is ignored."""


class Medium(MessagePart):
    """A part that holds a medium. The served model has to take its modality."""

    modality: ClassVar[str]
    uuid: Any = Field(default=None, exclude=True)

    @field_validator("uuid")
    @classmethod
    def _refuse_uuid(cls, uuid: Any) -> None:
        if uuid is not None:
            raise fault(f"{PLACE} would be shared with other clients: leave it out of the request.")

    @model_validator(mode="after")
    def _check_modality(self, info: ValidationInfo[Served]) -> Self:
        if self.modality not in info.context.modalities:
            raise fault(f"{PLACE} is of modality {self.modality}, which this model does not take.")
        return self


def told_by(key: str) -> Discriminator:
    """Tells the members of a union, read or not yet, by the value of `key`: the name in their tags."""
    return Discriminator(lambda value: tag(value[key] if isinstance(value, dict) else getattr(value, key)))


def one_of(key: str, kinds: str, *names: str) -> BeforeValidator:
    """Refuses what is no object, or has none of `names` under `key`. `kinds` is what users call the names."""
    listed = f"The {kinds} are: {', '.join(names)}."
    takes_videos = any("video" in name for name in names)

    def check(value: Any) -> Any:
        if not isinstance(value, dict):
            raise fault(f"{PLACE} has to be an object.")
        if key not in value:
            raise fault(f"{PLACE}.{key} is missing. {listed}")
        if not isinstance(value[key], str) or value[key] not in names:
            is_video = isinstance(value[key], str) and "video" in value[key]
            advice = "" if takes_videos or not is_video else f" {VIDEOS}"
            raise fault(f"{PLACE}.{key} is {shortened(repr(value[key]))}. {listed}{advice}")
        return value

    return BeforeValidator(check)


def text_or_list(items: str) -> BeforeValidator:
    """Refuses what is neither text nor a list that holds at least one of `items`."""

    def check(value: Any) -> Any:
        if not isinstance(value, str | list):
            raise fault(f"{PLACE} has to be a text or a list of {items}.")
        if value == []:
            raise fault(f"{PLACE} is an empty list: give at least one of its {items}.")
        return value

    return BeforeValidator(check)


TEXT_OR_LIST = Discriminator(lambda value: tag("text" if isinstance(value, str) else "list"))
"""Tells a text from a list, by the tags `<text>` and `<list>`."""


def tag(name: str) -> str:
    """A union's tag. Its brackets tell it from the request's keys where an error says its place."""
    return f"<{name}>"
