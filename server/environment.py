"""Environment variables that must be set before vLLM, transformers and prometheus_client are imported."""

import os
from pathlib import Path

from prismoe.model_plugins.files.bundled import bundled_checkpoint
from prismoe.model_plugins.plugin import add_to_vllm_plugins
from prismoe.model_plugins.processes import ask_to_end_with_parent

MEDIA_CONNECTOR = "prismoe"
"""The name of `prismoe.server.media` in vLLM's registry of classes that read images and videos."""


def prepare_environment(model: str) -> None:
    """Set the variables that the user has not set, and unset PROMETHEUS_MULTIPROC_DIR."""
    ask_to_end_with_parent()
    add_to_vllm_plugins()
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("VLLM_MEDIA_CONNECTOR", MEDIA_CONNECTOR)
    # This halves the number of series: nothing here uses the time at which a counter was created.
    os.environ.setdefault("PROMETHEUS_DISABLE_CREATED_SERIES", "True")
    if Path(model) == bundled_checkpoint():  # Other checkpoints may need a vision tower from the Hub.
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # There is one API process. In multiprocess mode the metrics that prismoe registers would not be exported.
    os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
