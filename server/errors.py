"""Error messages for the user of a command."""

import re
import sys
import traceback

from pydantic import ValidationError

CODE_OPTION = "--run-checkpoint-code"


class StartRefused(Exception):
    """The server can't start. The message tells the user why."""


class EngineFailed(Exception):
    """The server ended because its engine died or is stuck, or because its HTTP server failed."""


def fail(message: str) -> int:
    """Print why the command stops, and return its exit status, 1."""
    print(f"prismoe: {message}", file=sys.stderr)
    return 1


def sentence(error: Exception) -> str:
    """Return an error's message, without the text that pydantic adds around it."""
    if isinstance(error, ValidationError):
        text = " ".join(_fault(fault["loc"], fault["msg"]) for fault in error.errors())
    else:
        text = str(error)
    # vLLM and transformers recommend an option that prismoe refuses.
    needs_option = re.search("trust.remote.code", text) and CODE_OPTION not in text
    return f"{text} prismoe's option for this is {CODE_OPTION}." if needs_option else text


def explained(error: Exception) -> str:
    """Return the message of an unexpected error, with its class and place if it may not be a sentence."""
    text = sentence(error)
    if text and isinstance(error, ValueError | TypeError | RuntimeError | OSError):
        return text
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {frame.filename}, line {frame.lineno}: {text}"


def _fault(location: tuple[int | str, ...], message: str) -> str:
    message = message.removeprefix("Value error, ").removeprefix("Assertion failed, ")
    option = "--" + str(location[0]).replace("_", "-") + ": " if location else ""
    return option + message
