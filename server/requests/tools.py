"""Checks the tools of a request: the server must be able to show them to the model and to read its calls."""

from typing import Any, ClassVar, Self

from pydantic import model_validator
from pydantic_core.core_schema import ValidationInfo

from prismoe.server.requests.errors import fault, shortened
from prismoe.server.requests.models import Message, Served

NO_PLACE = (
    "This model's chat template does not support tools: leave tools, their calls and their results out of "
    "the request, or serve the model with a --chat-template that supports them."
)
NO_CALLS = (
    "This server doesn't read calls from answers: start it with --enable-auto-tool-choice and "
    "--tool-call-parser, or set tool_choice to none."
)
FUNCTIONS = ("function", "custom", None)
"""The types of tools that the client runs. Others are refused, because the server would have to run them."""


class ToolMessage(Message):
    """A message, or a part of one, about a tool's call or its result."""

    @model_validator(mode="after")
    def _check_template(self, info: ValidationInfo[Served]) -> Self:
        if not info.context.template_has_tools:
            raise fault(NO_PLACE)
        return self


class OffersTools(Message):
    """A body that may offer tools to the model. vLLM checks their details."""

    is_answered: ClassVar[bool] = True
    """Whether the model answers. Otherwise the prompt is only tokenized."""
    tools: Any = None
    tool_choice: Any = None

    @model_validator(mode="after")
    def _check_tools(self, info: ValidationInfo[Served]) -> Self:
        served, choice = info.context, _choice(self.tool_choice)
        if not self.tools:
            if choice == "forced":
                raise fault("tool_choice asks for a call, but the request has no tools: send tools, too.")
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
    """Return `none`, `auto` or `forced` for a tool_choice of any of the three APIs."""
    if isinstance(
        tool_choice, dict
    ):  # Anthropic's form, a named function, or the responses API's allowed tools
        tool_choice = tool_choice.get("mode") or tool_choice.get("type")
    if tool_choice is None:
        return "auto"
    return tool_choice if tool_choice in ("none", "auto") else "forced"


def _check_type(place: str, tool: Any) -> None:
    if not isinstance(tool, dict):
        raise fault(f"{place} must be an object.")
    kind = tool.get("type")
    if not isinstance(kind, str | None) or kind not in FUNCTIONS:
        raise fault(f"{place}.type is {shortened(repr(kind))}. prismoe runs no tools: send only functions.")
