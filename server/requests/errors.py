"""Turns pydantic's errors about a request into a sentence about the first error."""

from collections.abc import Sequence
from typing import Any

from pydantic_core import ErrorDetails, PydanticCustomError

MAX_ECHOED = 40
"""The most characters of a client's own value that an error repeats."""

OWN = "prismoe"
"""The type of those pydantic errors that have prismoe's own sentences as messages."""

PLACE = "{place}"
"""The placeholder for the error's place in such a message."""

EXPECTED = {
    "string_type": "a text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}
"""For pydantic's errors of wrong types, the type that is expected."""

BOUNDS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}
"""For pydantic's errors of limits, the key of the limit and its words."""


def sentence(errors: Sequence[ErrorDetails], request: Any) -> str:
    """Return a sentence about the first of the errors that pydantic found in `request`."""
    error, path = errors[0], _path(errors[0], request)
    kind: str = error["type"]
    context: dict[str, Any] = error.get("ctx", {})
    if kind == OWN:
        return error["msg"].replace(PLACE, path, 1)
    if isinstance(context.get("error"), Exception):
        return str(context["error"])  # This is a validator's own message.
    others = [(other["type"], _path(other, request)) for other in errors[1:]]
    if any(place.startswith(path) and (other, place) != (kind, path) for other, place in others):
        # The value may have several types, and does not fit any of them.
        return f"{path} has a value of a type that it does not take."
    if kind in EXPECTED:
        return f"{path} must be {EXPECTED[kind]}."
    if kind in BOUNDS:
        key, words = BOUNDS[kind]
        return f"{path} must be {words} {context[key]}."
    match kind:
        case "missing":
            return f"{path} is missing."
        case "extra_forbidden" | "none_required":
            return f"{path} is not supported: leave it out of the request."
        case "literal_error" | "enum":
            return f"{path} must be {context['expected']}."
        case "too_short" | "string_too_short":
            return f"{path} is empty."
        case "too_long" | "string_too_long":
            return f"{path} is longer than {context['max_length']}."
        case "string_pattern_mismatch":
            return f"{path} must match {context['pattern']}."
    return f"{path} has a value that it does not take."


def fault(message: str) -> PydanticCustomError:
    """Return an error for a validator to raise. PLACE in its message is replaced by the error's place."""
    return PydanticCustomError(OWN, message)


def _path(error: ErrorDetails, request: Any) -> str:
    """Return an error's place in Python's notation, such as `messages[0].content`.

    Pydantic's places also name the members of unions. So steps that the request does not have are left out,
    except a last step that is a missing or unsupported key.
    """
    steps, value = [], request
    last = len(error["loc"]) - 1 if error["type"] in ("missing", "extra_forbidden") else None
    for number, step in enumerate(error["loc"]):
        if isinstance(step, int) and isinstance(value, list) and step < len(value):
            steps.append(f"[{step}]")
            value = value[step]
        elif isinstance(value, dict) and step in value:
            steps.append(f".{shortened(str(step))}")
            value = value[step]
        elif number == last:
            steps.append(f".{shortened(str(step))}")
    return "".join(steps).removeprefix(".") or "The request"


def shortened(text: str) -> str:
    """Return the text, or only its beginning if it is long."""
    return text if len(text) <= MAX_ECHOED else text[:MAX_ECHOED] + "…"
