"""Checks that the installed vLLM still has what prismoe overrides and what it uses by private names.

`make compat` compares the same list with a release that is not installed, by reading its files.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

TESTED = "0.32"
"""The release of vLLM that the tests run."""

CHECKED = "0.33"
"""The release whose names and signatures `make compat` has compared; none of it has been run."""


class Needed(NamedTuple):
    """A function or method of vLLM that prismoe needs, as `module:Class.method`."""

    name: str
    parameters: tuple[str, ...] = ()
    """The first parameters, after self or cls. `a|b` where one release names it a and another b."""
    attributes: tuple[str, ...] = ()
    """Names of attributes that the function reads or sets."""

    def takes(self, parameters: Sequence[str]) -> bool:
        """Whether `parameters` start with the expected ones."""
        has = [name for name in parameters if name not in ("self", "cls")]
        first = has[: len(self.parameters)]
        return len(first) == len(self.parameters) and all(
            name in known.split("|") for name, known in zip(first, self.parameters, strict=True)
        )


class VLLMChanged(ValueError):
    """The installed vLLM lacks a function, or has it in another form."""


def check(needs: Iterable[Needed]) -> None:
    """Raise VLLMChanged for the first function that is missing or different."""
    for needed in needs:
        if not _is_there(needed):
            raise VLLMChanged(
                f"vLLM's {needed.name.replace(':', '.')} is missing or has changed. prismoe is tested with "
                f"vLLM {TESTED}; for vLLM {CHECKED}, only names and signatures were checked. "
                "Install one of these."
            )


def all_needs() -> list[Needed]:
    """Everything that the files of this room need."""
    files = pkgutil.walk_packages([str(Path(__file__).parent)], f"{__package__}.")
    seams = [importlib.import_module(file.name) for file in files if not file.ispkg and file.name != __name__]
    return [needed for seam in seams for needed in seam.NEEDS]


def _is_there(needed: Needed) -> bool:
    module, _, path = needed.name.partition(":")
    try:
        found: object = importlib.import_module(module)
        for part in path.split("."):
            found = inspect.getattr_static(found, part)
    except (ImportError, AttributeError):
        return False
    function: Any = inspect.unwrap(found)  # type: ignore[arg-type]
    names = function.__code__.co_names if needed.attributes else ()
    return needed.takes(list(inspect.signature(function).parameters)) and set(needed.attributes) <= set(names)
