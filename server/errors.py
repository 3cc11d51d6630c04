"""What the user is told where a command can't go on."""

import re
import sys
import traceback

from pydantic import ValidationError

CODE_OPTION = "--run-checkpoint-code"


class StartRefused(Exception):
    """The server can't start; the message tells the user why."""


class EngineFailed(Exception):
    """The server ended because its engine died or is stuck."""


def fail(message: str) -> int:
    """Say why the command stops; the exit status to return."""
    print(f"prismoe: {message}", file=sys.stderr)
    return 1


def sentence(error: Exception) -> str:
    """What an error says, without pydantic's framing."""
    if isinstance(error, ValidationError):
        text = " ".join(_fault(fault["loc"], fault["msg"]) for fault in error.errors())
    else:
        text = str(error)
    # vLLM and transformers advise an option that is not taken here.
    advises = re.search("trust.remote.code", text) and CODE_OPTION not in text
    return f"{text} prismoe's option for this is {CODE_OPTION}." if advises else text


def explained(error: Exception) -> str:
    """What an unforeseen error says, with its class and place where it may be no sentence."""
    text = sentence(error)
    if text and isinstance(error, ValueError | TypeError | RuntimeError | OSError):
        return text
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {frame.filename}, line {frame.lineno}: {text}"


def _fault(location: tuple[int | str, ...], message: str) -> str:
    message = message.removeprefix("Value error, ").removeprefix("Assertion failed, ")
    option = "--" + str(location[0]).replace("_", "-") + ": " if location else ""
    return option + message
