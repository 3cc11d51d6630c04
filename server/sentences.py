"""What the user is told where a command can't go on."""

import sys

from pydantic import ValidationError


def fail(message: str) -> int:
    """Say why the command stops; the exit status to return."""
    print(f"prismoe: {message}", file=sys.stderr)
    return 1


def sentence(error: Exception) -> str:
    """What an error says, without pydantic's framing."""
    if not isinstance(error, ValidationError):
        return str(error)
    return " ".join(_fault(fault["loc"], fault["msg"]) for fault in error.errors())


def _fault(location: tuple[int | str, ...], message: str) -> str:
    message = message.removeprefix("Value error, ").removeprefix("Assertion failed, ")
    option = "--" + str(location[0]).replace("_", "-") + ": " if location else ""
    return option + message
