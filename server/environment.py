"""Environment variables that must be set before vLLM, transformers and prometheus_client are imported."""

import os
from pathlib import Path

from prismoe.model_plugins.files.bundled import bundled_checkpoint
from prismoe.model_plugins.plugin import add_to_vllm_plugins
from prismoe.model_plugins.processes import ask_to_end_with_parent

MEDIA_CONNECTOR = "prismoe"
"""The name in vLLM's registry of what fetches a request's images (`prismoe.server.media`)."""


def prepare_environment(model: str) -> None:
    """Set what prismoe wants where the user has not said otherwise."""
    ask_to_end_with_parent()
    add_to_vllm_plugins()
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("VLLM_MEDIA_CONNECTOR", MEDIA_CONNECTOR)
    # Half as many series: nothing here asks when a counter was made.
    os.environ.setdefault("PROMETHEUS_DISABLE_CREATED_SERIES", "True")
    if Path(model) == bundled_checkpoint():  # Others may need a tower that is on the Hub.
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # There is one API process: metrics of several would hide those that prismoe adds to the registry.
    os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
