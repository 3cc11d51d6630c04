"""The quiet log, the default of `prismoe serve`: prismoe's own lines, and vLLM's warnings and errors."""

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

CONFIG = Path(__file__).with_name("quiet.json")
"""The logging configuration. vLLM applies it in each of its processes, including the engine's."""

OPTIONS = ("--log-level", "--log-config-file", "--logging-config")
"""How the names of vLLM's options for the log begin."""

HARMLESS = (
    # These warn of things that prismoe chooses or brings itself.
    "Enforce eager set, disabling torch.compile",
    "Inductor compilation was disabled by user settings",
    "Using custom scheduler class prismoe.",
    "Found endpoint plugin(s) ['prismoe']",
    "Unexpected gate/up projection names: fc1, made up.",
    # These warn of things that vLLM never uses on a CPU.
    "Triton is installed, but doesn't include CPU backend.",
    "Triton is not installed.",
    "Model Runner V2 requires Triton;",
    "CPU backend doesn't allow to use `torch.set_num_threads`",
)
"""The beginnings of those warnings of vLLM that need no action of the operator."""


class NotHarmless(logging.Filter):
    """Keeps the HARMLESS warnings out of a handler."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the handler writes this record."""
        return record.levelno != logging.WARNING or not record.getMessage().startswith(HARMLESS)


def be_quiet(verbose: bool, engine_options: Sequence[str]) -> None:
    """Make vLLM write the quiet log, unless the user chooses or configures vLLM's own log.

    This works only before vLLM is imported.
    """
    configured = [name for name in os.environ if name.startswith(("VLLM_LOGGING_", "VLLM_CONFIGURE_LOGGING"))]
    configured += [option for option in engine_options if option.replace("_", "-").startswith(OPTIONS)]
    if not verbose and not configured:
        os.environ["VLLM_LOGGING_CONFIG_PATH"] = str(CONFIG)
        # vLLM uses a name that torch has deprecated. Child processes inherit this option.
        sys.warnoptions.append("ignore::FutureWarning:vllm.triton_utils.dispatcher")


def is_quiet() -> bool:
    """Return whether this process and its children write the quiet log."""
    return os.environ.get("VLLM_LOGGING_CONFIG_PATH") == str(CONFIG)
