"""Base classes and validators for the models of all routes."""

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
    """The abilities of the model and the server: the context in which requests are validated."""

    modalities: frozenset[str] = frozenset()
    """The modalities of the media that the model takes."""
    template_has_tools: bool = False
    """Whether the chat template writes tools, calls and their results."""
    reads_forced_calls: bool = False
    """Whether the server reads calls from answers if the request forces a call."""
    reads_calls: bool = False
    """Whether the server reads calls from answers if the model may choose to call."""
    images_choose_routing: bool = False
    """Whether a request may choose the routing of its images. Only MoE-LLaVA's processor supports that."""


class Message(BaseModel):
    """A message or a whole body. Unlisted keys are left out, and no value is converted."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


class Part(BaseModel):
    """A part of a message. Unlisted keys are refused, and no value is converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class MessagePart(Part):
    """A part in a message's own list."""

    cache_control: Any = Field(default=None, exclude=True)
    """Anthropic's hint for caches. Client libraries send it to all servers, and it is ignored."""


class Medium(MessagePart):
    """A part that contains a medium. The served model must take its modality."""

    modality: ClassVar[str]
    uuid: Any = Field(default=None, exclude=True)

    @field_validator("uuid")
    @classmethod
    def _refuse_uuid(cls, uuid: Any) -> None:
        if uuid is not None:
            raise fault(f"{PLACE} would share the medium with other clients: leave it out of the request.")

    @model_validator(mode="after")
    def _check_modality(self, info: ValidationInfo[Served]) -> Self:
        if self.modality not in info.context.modalities:
            raise fault(
                f"{PLACE} has the modality {self.modality}, which this model does not take: leave it out."
            )
        return self


def chosen_by(key: str) -> Discriminator:
    """Return a discriminator that chooses a union's member by the value of `key`, which is in its tag."""
    return Discriminator(lambda value: tag(value[key] if isinstance(value, dict) else getattr(value, key)))


def one_of(key: str, kinds: str, *names: str) -> BeforeValidator:
    """Return a validator for objects with one of `names` under `key`. Errors call the names `kinds`."""
    listed = f"The {kinds} are: {', '.join(names)}."
    takes_videos = any("video" in name for name in names)

    def check(value: Any) -> Any:
        if not isinstance(value, dict):
            raise fault(f"{PLACE} must be an object.")
        if key not in value:
            raise fault(f"{PLACE}.{key} is missing. {listed}")
        if not isinstance(value[key], str) or value[key] not in names:
            is_video = isinstance(value[key], str) and "video" in value[key]
            advice = "" if takes_videos or not is_video else f" {VIDEOS}"
            raise fault(f"{PLACE}.{key} is {shortened(repr(value[key]))}. {listed}{advice}")
        return value

    return BeforeValidator(check)


def text_or_list(items: str) -> BeforeValidator:
    """Return a validator for a text or a list that is not empty. Errors call the list's items `items`."""

    def check(value: Any) -> Any:
        if not isinstance(value, str | list):
            raise fault(f"{PLACE} must be a text or a list of {items}.")
        if value == []:
            raise fault(f"{PLACE} is an empty list: give at least one of its {items}.")
        return value

    return BeforeValidator(check)


TEXT_OR_LIST = Discriminator(lambda value: tag("text" if isinstance(value, str) else "list"))
"""Chooses the member with the tag `<text>` for a text, and that with `<list>` for a list."""


def tag(name: str) -> str:
    """Return a union's tag. The brackets distinguish it from the request's keys in an error's place."""
    return f"<{name}>"
