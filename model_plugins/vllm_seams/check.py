"""Whether the vLLM that is installed still has what prismoe overrides and calls in private."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

TESTED = "0.32"
"""The release of vLLM that prismoe is tested with."""


class Needed(NamedTuple):
    """A function or method of vLLM's, as `module:Class.method`."""

    name: str
    parameters: tuple[str, ...] = ()
    """Its first ones, behind self."""
    attributes: tuple[str, ...] = ()
    """What it reads or sets by these names."""


class VLLMChanged(ValueError):
    """The vLLM that is installed lacks something, or has another form of it."""


def check(needs: Iterable[Needed]) -> None:
    """Raise VLLMChanged, with a sentence, for the first that is not as prismoe knows it."""
    for needed in needs:
        if not _is_there(needed):
            raise VLLMChanged(
                f"vLLM's {needed.name.replace(':', '.')} has changed: prismoe is tested with vLLM {TESTED}. "
                "Install that release."
            )


def all_needs() -> list[Needed]:
    """What all files of this folder need."""
    files = pkgutil.iter_modules([str(Path(__file__).parent)], f"{__package__}.")
    seams = [importlib.import_module(file.name) for file in files if file.name != __name__]
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
    has = [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]
    names = function.__code__.co_names if needed.attributes else ()
    return tuple(has[: len(needed.parameters)]) == needed.parameters and set(needed.attributes) <= set(names)
