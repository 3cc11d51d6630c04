"""Checks, and the line that each of them prints."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

Figures = Mapping[str, float | str]
"""What a check measured or did, by name."""


class Host(NamedTuple):
    """Where checks run: on a GPU, or in a dry run on CPU with Triton's interpreter."""

    is_dry: bool

    @property
    def device(self) -> str:
        """PyTorch's name of the device."""
        return "cpu" if self.is_dry else "cuda"


class Skip(Exception):
    """A check can't run on this host. The message says why."""


@dataclass(frozen=True)
class Check:
    """A check. It runs in its own process, and fails by raising an exception, whose first line is printed."""

    name: str
    limit_s: int
    """The time limit on a GPU. A dry run gets twice as long."""
    run: Callable[[Host], Figures]
    needs_gpu: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of its process."""


class Result(BaseModel):
    """How a check ended."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    outcome: Literal["ok", "failed", "skipped"]
    why: str = ""
    figures: Figures = {}


class Line(Result):
    """The line that is printed and kept for a check."""

    name: str
    seconds: float

    def __str__(self) -> str:
        figures = [f"{name}: {_shown(value)}" for name, value in self.figures.items()]
        details = "; ".join([self.why] * bool(self.why) + figures)
        return f"{self.outcome:8}{self.seconds:6.1f} s  {self.name}" + f": {details}" * bool(details)


class Later:
    """A function of a module of this folder, which only the check's own process imports.

    So a failing import fails only the checks that need it.
    """

    def __init__(self, module: str, function: str, **arguments: Any) -> None:
        self._module, self._function = module, function
        self.arguments = arguments

    def function(self) -> Callable[..., Figures]:
        """The imported function. It takes the host and `arguments`."""
        function: Callable[..., Figures] = getattr(
            import_module(f"{__package__}.{self._module}"), self._function
        )
        return function

    def __call__(self, host: Host) -> Figures:
        return self.function()(host, **self.arguments)


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"
