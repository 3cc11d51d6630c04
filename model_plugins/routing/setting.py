"""The routing settings as the commands accept them: JSON, or `@` and the name of a JSON file."""

import json
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from prismoe.model_plugins.routing import NATIVE


def _parse(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        settings = json.loads(Path(value[1:]).read_text() if value.startswith("@") else value)
    except json.JSONDecodeError as error:
        raise ValueError(f'{value!r} is not JSON ({error}). Example: \'{{"policy": "ltdr"}}\'') from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{value!r} is not JSON (it is not text).") from error
    except OSError as error:
        raise ValueError(f"{value!r} can't be read ({error.strerror}).") from error
    if not isinstance(settings, dict):
        raise ValueError(f'{value!r} is not a JSON object. Example: \'{{"policy": "ltdr"}}\'')
    return settings


PolicySettings = Annotated[dict[str, Any] | None, BeforeValidator(_parse)]


class RoutingSetting(BaseModel):
    """`--routing`, which all commands have; None keeps the checkpoint's routing."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    routing: PolicySettings = Field(
        None,
        title="JSON",
        description='route by this policy in place of the checkpoint\'s, for example {"policy": "topk"}; '
        "@FILE reads the JSON from a file",
    )


class ShadowSetting(RoutingSetting):
    """`--shadow`, which servers have: the policy that is counted while `native` routes; None for none."""

    shadow: PolicySettings = Field(
        None,
        title="JSON",
        description="count what this policy would choose, while the model routes by itself; @FILE reads the "
        "JSON from a file",
    )

    @model_validator(mode="after")
    def _check_native(self) -> Self:
        if self.shadow is not None and self.routing not in (None, NATIVE):
            raise ValueError(
                "A shadow policy is counted while the model routes by native, and the setting routing puts "
                "another policy in force: leave one of both out."
            )
        return self
