"""The keys of config.json that every decoder needs, and their checks."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, Field, PositiveInt, ValidationError
from transformers import PretrainedConfig

Settings = TypeVar("Settings", bound=BaseModel)
Share = Annotated[float, Field(gt=0, le=1)]


class DecoderSettings(BaseModel):
    """The keys without which no decoder can be built."""

    model_type: str
    architectures: Annotated[list[str], Field(min_length=1)]
    vocab_size: PositiveInt
    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    mm_vision_select_layer: int
    rotary_share: Share
    """The share of a head that rotates with its position. Each family has another key for it."""


class DecoderConfig(PretrainedConfig):
    """A config that is checked when it is read."""

    settings: ClassVar[type[DecoderSettings]]

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Self:
        check_settings(cls.settings, config_dict)
        return super().from_dict(config_dict, **kwargs)


def check_settings(kind: type[DecoderSettings], config: Mapping[str, Any]) -> None:
    """Raise ValueError where config.json lacks a key of its decoder, or has a wrong value for one."""
    decoder = validated(kind, config)
    head_size, rest = divmod(decoder.hidden_size, decoder.num_attention_heads)
    if rest:
        raise ValueError(
            f"hidden_size is {decoder.hidden_size} in the checkpoint's config.json, which is not a multiple "
            f"of num_attention_heads ({decoder.num_attention_heads})."
        )
    rotated = int(head_size * decoder.rotary_share)
    if rotated < 2 or rotated % 2:
        key = kind.model_fields["rotary_share"].alias
        raise ValueError(
            f"{key} is {decoder.rotary_share:g} in the checkpoint's config.json, which rotates {rotated} of "
            f"each head's {head_size} numbers: that has to be an even number of at least 2."
        )


def validated(kind: type[Settings], values: object, where: str = "") -> Settings:
    """Validate the values as settings of this kind. Raises ValueError that names the wrong key."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        fault = error.errors()[0]
        key = where + ".".join(map(str, fault["loc"]))
        if fault["type"] == "missing":
            raise ValueError(f"The checkpoint's config.json lacks {key}.") from error
        message = fault["msg"][:1].lower() + fault["msg"][1:]
        raise ValueError(
            f"{key} is {fault['input']!r} in the checkpoint's config.json: {message}."
        ) from error
