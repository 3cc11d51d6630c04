"""The settings of `prismoe serve`, apart from vLLM's own options."""

from pathlib import Path

from pydantic import Field, field_validator

from prismoe.model_plugins.files.bundled import bundled_checkpoint
from prismoe.model_plugins.routing.setting import ShadowSetting
from prismoe.model_plugins.worker.settings import CodeSettings, LogSettings, MetricsSettings
from prismoe.server.access.settings import AccessSettings
from prismoe.server.health.settings import HealthSettings
from prismoe.server.limits.settings import LimitSettings
from prismoe.server.media.settings import MediaSettings


class ServeSettings(
    ShadowSetting,
    CodeSettings,
    LogSettings,
    MetricsSettings,
    AccessSettings,
    LimitSettings,
    HealthSettings,
    MediaSettings,
):
    """One server's settings. `engine_options` are vLLM's options as the user typed them."""

    model: str = Field(default_factory=lambda: str(bundled_checkpoint()), validate_default=True)
    engine_options: tuple[str, ...] = ()

    @field_validator("model")
    @classmethod
    def _find_folder(cls, value: str) -> str:
        if value.startswith(("/", ".", "~")) and not Path(value).is_dir():
            raise ValueError(
                f"There is no folder {value}: give the folder of a checkpoint, or a name on the Hub."
            )
        return value

    @property
    def bundled(self) -> bool:
        """Whether the model is the one that ships with prismoe."""
        return Path(self.model).resolve() == bundled_checkpoint().resolve()
