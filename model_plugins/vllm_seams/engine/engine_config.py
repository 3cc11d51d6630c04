"""Changes each engine's configuration before vLLM's platform does, which chooses the worker."""

from collections.abc import Callable
from typing import Any

from vllm.config import VllmConfig
from vllm.platforms import current_platform

from prismoe.model_plugins.vllm_seams.check import Needed

NEEDS = [
    Needed("vllm.platforms.interface:Platform.check_and_update_config", ("vllm_config",)),
    Needed("vllm.config.vllm:VllmConfig.__post_init__", attributes=("check_and_update_config",)),
]


def before_platform(change: Callable[[VllmConfig], None]) -> None:
    """Call `change` with every configuration that is created in this process from now on."""
    platform: Any = current_platform
    update = platform.check_and_update_config

    def change_and_update(vllm_config: VllmConfig) -> None:
        change(vllm_config)
        update(vllm_config)

    platform.check_and_update_config = change_and_update
