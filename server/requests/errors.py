"""What is wrong with a request, in a sentence about the first fault that pydantic found."""

from collections.abc import Sequence
from typing import Any

from pydantic_core import ErrorDetails, PydanticCustomError

MOST_ECHOED = 40
"""How many characters of a client's own value an error repeats."""

OWN = "prismoe"
"""The type of pydantic's errors whose messages are prismoe's sentences."""

PLACE = "{place}"
"""Stands in such a message for the place of the fault."""

WANTED = {
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
"""What pydantic's errors of wrong types want."""

BOUNDS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}
"""For pydantic's errors of bounds, the key of the bound and its words."""


def sentence(errors: Sequence[ErrorDetails], request: Any) -> str:
    """What is wrong with `request`, of which pydantic found `errors`."""
    error, path = errors[0], _path(errors[0], request)
    kind: str = error["type"]
    context: dict[str, Any] = error.get("ctx", {})
    if kind == OWN:
        return error["msg"].replace(PLACE, path, 1)
    if isinstance(context.get("error"), Exception):
        return str(context["error"])  # a validator's own words
    others = [(other["type"], _path(other, request)) for other in errors[1:]]
    if any(place.startswith(path) and (other, place) != (kind, path) for other, place in others):
        # Each way to read the value has a fault of its own.
        return f"{path} has a value of a kind that it does not take."
    if kind in WANTED:
        return f"{path} has to be {WANTED[kind]}."
    if kind in BOUNDS:
        key, words = BOUNDS[kind]
        return f"{path} has to be {words} {context[key]}."
    match kind:
        case "missing":
            return f"{path} is missing."
        case "extra_forbidden" | "none_required":
            return f"{path} is not taken: leave it out of the request."
        case "literal_error" | "enum":
            return f"{path} has to be {context['expected']}."
        case "too_short" | "string_too_short":
            return f"{path} is empty."
        case "too_long" | "string_too_long":
            return f"{path} is longer than {context['max_length']}."
        case "string_pattern_mismatch":
            return f"{path} has to match {context['pattern']}."
    return f"{path} has a value that it does not take."


def fault(message: str) -> PydanticCustomError:
    """An error for a validator to raise, in whose message PLACE stands for where it is."""
    return PydanticCustomError(OWN, message)


def _path(error: ErrorDetails, request: Any) -> str:
    """An error's place as one would write it in Python, such as `messages[0].content`.

    Pydantic's places also name the members of unions: steps that the request does not have are left out,
    unless the last one is the key that is missing or not taken.
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
    """The text, or its beginning where it is long."""
    return text if len(text) <= MOST_ECHOED else text[:MOST_ECHOED] + "…"
