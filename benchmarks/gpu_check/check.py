"""What a check is, and the line that it leaves."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

Figures = Mapping[str, float | str]
"""What a check has measured, or done, by name."""


class Host(NamedTuple):
    """Where checks run: on a GPU or, dry, on CPU by Triton's interpreter."""

    is_dry: bool

    @property
    def device(self) -> str:
        """PyTorch's name of it."""
        return "cpu" if self.is_dry else "cuda"


class Skip(Exception):
    """A check can't run on this host. The sentence says why."""


@dataclass(frozen=True)
class Check:
    """Runs in a process of its own. It fails by an exception, whose first line is told."""

    name: str
    limit_s: int
    """On a GPU; dry, it gets twice as long."""
    run: Callable[[Host], Figures]
    needs_gpu: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    """Of its process."""


class Result(BaseModel):
    """How a check ended."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    outcome: Literal["ok", "failed", "skipped"]
    why: str = ""
    figures: Figures = {}


class Line(Result):
    """What is printed and kept of a check."""

    name: str
    seconds: float

    def __str__(self) -> str:
        told = [f"{name}: {_shown(value)}" for name, value in self.figures.items()]
        said = "; ".join([self.why] * bool(self.why) + told)
        return f"{self.outcome:8}{self.seconds:6.1f} s  {self.name}" + f": {said}" * bool(said)


class Later:
    """A function of a module of this folder, which the check's own process imports.

    So an import that breaks fails the checks that need it, and no others.
    """

    def __init__(self, module: str, function: str, **arguments: Any) -> None:
        self._module, self._function = module, function
        self.arguments = arguments

    def function(self) -> Callable[..., Figures]:
        """It takes the host and `arguments`."""
        function: Callable[..., Figures] = getattr(
            import_module(f"{__package__}.{self._module}"), self._function
        )
        return function

    def __call__(self, host: Host) -> Figures:
        return self.function()(host, **self.arguments)


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"
