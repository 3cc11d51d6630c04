"""Tools: what a request offers the model, which choice it leaves, and whether this server can keep to it."""

from typing import Any, ClassVar, Self

from pydantic import model_validator
from pydantic_core.core_schema import ValidationInfo

from prismoe.server.requests.errors import fault, shortened
from prismoe.server.requests.models import Message, Served

NO_PLACE = (
    "This model's chat template has no place for tools: leave tools, their calls and their results out of "
    "the request, or serve the model with a --chat-template that has one."
)
NO_CALLS = (
    "This server doesn't read calls out of answers: start it with --enable-auto-tool-choice and "
    "--tool-call-parser, or set tool_choice to none."
)
FUNCTIONS = ("function", "custom", None)
"""The types of tools whose calls go to the client. The others are the server's to run; they are refused."""


class OfTools(Message):
    """A message, or a part of one, that tells of a tool's call or of its result."""

    @model_validator(mode="after")
    def _check_template(self, info: ValidationInfo[Served]) -> Self:
        if not info.context.template_has_tools:
            raise fault(NO_PLACE)
        return self


class OffersTools(Message):
    """A body that may offer tools to the model. The checks of their details are vLLM's."""

    is_answered: ClassVar[bool] = True
    """Whether the model answers; else the prompt's tokens are counted alone."""
    tools: Any = None
    tool_choice: Any = None

    @model_validator(mode="after")
    def _check_tools(self, info: ValidationInfo[Served]) -> Self:
        served, choice = info.context, _choice(self.tool_choice)
        if not self.tools:
            if choice == "forced":
                raise fault("tool_choice asks for a call, and there are no tools: send tools, too.")
            return self
        if isinstance(self.tools, list):
            for index, tool in enumerate(self.tools):
                _check_type(f"tools[{index}]", tool)
        if choice == "none":
            return self
        if not served.template_has_tools:
            raise fault(NO_PLACE)
        if self.is_answered and not (served.reads_calls if choice == "auto" else served.reads_forced_calls):
            raise fault(NO_CALLS)
        return self


def _choice(tool_choice: Any) -> str:
    """What all three APIs leave to the model: `none`, `auto`, or that a call is `forced`."""
    if isinstance(tool_choice, dict):  # Anthropic's, a named function, or responses' allowed tools
        tool_choice = tool_choice.get("mode") or tool_choice.get("type")
    if tool_choice is None:
        return "auto"
    return tool_choice if tool_choice in ("none", "auto") else "forced"


def _check_type(place: str, tool: Any) -> None:
    if not isinstance(tool, dict):
        raise fault(f"{place} has to be an object.")
    kind = tool.get("type")
    if not isinstance(kind, str | None) or kind not in FUNCTIONS:
        raise fault(f"{place}.type is {shortened(repr(kind))}. prismoe runs no tools: send functions alone.")
