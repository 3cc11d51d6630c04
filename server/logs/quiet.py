"""The log that `prismoe serve` writes by itself: prismoe's own lines, and vLLM's warnings and errors."""

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

CONFIG = Path(__file__).with_name("quiet.json")
"""vLLM applies it in each of its processes, those of the engine included."""

OPTIONS = ("--log-level", "--log-config-file", "--logging-config")
"""vLLM's options for the log."""

HARMLESS = (
    # What prismoe itself chooses or brings.
    "Enforce eager set, disabling torch.compile",
    "Inductor compilation was disabled by user settings",
    "Using custom scheduler class prismoe.",
    "Found endpoint plugin(s) ['prismoe']",
    "Unexpected gate/up projection names: fc1, made up.",
    # What vLLM does without on every CPU.
    "Triton is installed, but doesn't include CPU backend.",
    "Triton is not installed.",
    "Model Runner V2 requires Triton;",
    "CPU backend doesn't allow to use `torch.set_num_threads`",
)
"""How warnings of vLLM's begin that ask an operator for nothing."""


class NotHarmless(logging.Filter):
    """Keeps the HARMLESS warnings out of a handler."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the handler writes this record."""
        return record.levelno != logging.WARNING or not record.getMessage().startswith(HARMLESS)


def be_quiet(verbose: bool, engine_options: Sequence[str]) -> None:
    """Have vLLM, not imported yet, write the quiet log, unless the user asks for its own or sets it up."""
    asked = [name for name in os.environ if name.startswith(("VLLM_LOGGING_", "VLLM_CONFIGURE_LOGGING"))]
    asked += [option for option in engine_options if option.replace("_", "-").startswith(OPTIONS)]
    if not verbose and not asked:
        os.environ["VLLM_LOGGING_CONFIG_PATH"] = str(CONFIG)
        # vLLM reads a name of torch's that torch is to drop. Child processes get this option, too.
        sys.warnoptions.append("ignore::FutureWarning:vllm.triton_utils.dispatcher")


def is_quiet() -> bool:
    """Whether this process and its children write the quiet log."""
    return os.environ.get("VLLM_LOGGING_CONFIG_PATH") == str(CONFIG)
