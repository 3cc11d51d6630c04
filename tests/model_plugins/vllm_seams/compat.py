"""Checks by reading its files that a release of vLLM fits prismoe: `make compat VLLM=0.33.0`.

The release is not installed or imported. Names and signatures are compared, and no code of it runs.
"""

import ast
import sys
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from zipfile import ZipFile

import griffe

from prismoe.model_plugins.vllm_seams.check import Needed, all_needs
from tests.paths import REPOSITORY


def main(wheel: Path) -> int:
    """Print what the wheel's vLLM lacks. Its Python files are unpacked into `unpacked` next to it."""
    folder = wheel.parent / "unpacked"
    with ZipFile(wheel) as packed:
        packed.extractall(folder, [name for name in packed.namelist() if name.endswith(".py")])
    rooms = [room for room in (REPOSITORY / "prismoe").iterdir() if room.is_dir()]
    files = [file for room in rooms for file in sorted(room.resolve().rglob("*.py"))]
    needs, imports = all_needs(), {names for file in files for names in imported(file, "vllm")}
    vllm = read(folder, "vllm")
    lacking = [*changed(vllm, needs), *missing(vllm, imports)]
    print(
        f"{wheel.name}: {len(needs)} functions that prismoe needs, and {len(imports)} names that it imports."
    )
    print("\n".join(lacking) or "All are there.")
    return 1 if lacking else 0


def read(folder: Path, package: str) -> griffe.Module:
    """Read a package from its files."""
    loader = griffe.GriffeLoader(search_paths=[folder], allow_inspection=False)
    module = loader.load(package)
    assert isinstance(module, griffe.Module)
    loader.resolve_aliases(implicit=True, external=False)
    return module


def changed(package: griffe.Module, needs: Iterable[Needed]) -> Iterator[str]:
    """A line for each function that is missing or has changed."""
    for needed in needs:
        name = needed.name.replace(":", ".")
        match _found(package, name):
            case griffe.Function() as function:
                parameters = [parameter.name for parameter in function.parameters]
                if not needed.takes(parameters):
                    yield f"{name} takes {', '.join(parameters)}; needed: {', '.join(needed.parameters)}"
                if unread := set(needed.attributes) - _names_in(function):
                    yield f"{name} does not use {', '.join(sorted(unread))}"
            case _:
                yield f"{name} is not there, or is no function"


def missing(package: griffe.Module, imports: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """A line for each name that can't be imported from any of its places."""
    for places in imports:
        if all(_found(package, place) is None for place in places):
            yield f"{' or '.join(places)} is imported, and is not there"


def imported(file: Path, package: str) -> Iterator[tuple[str, ...]]:
    """A module's imports from a package: each name with its possible places. One of them has to exist."""
    tree = ast.parse(file.read_text())
    elsewhere: dict[str, str] = {}  # the place in `except ImportError`
    for handler in (node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler)):
        if isinstance(handler.type, ast.Name) and handler.type.id == "ImportError":
            elsewhere |= dict(_names_from(handler, package))
    for name, place in _names_from(tree, package):
        if name not in elsewhere:
            yield (place,)
        elif place != elsewhere[name]:
            yield place, elsewhere[name]


def _names_from(tree: ast.AST, package: str) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == package:
            yield from ((name.name, f"{node.module}.{name.name}") for name in node.names)


def _found(package: griffe.Module, path: str) -> griffe.Object | None:
    try:
        found = package[path.split(".")[1:]]
        return found.final_target if isinstance(found, griffe.Alias) else found
    except (KeyError, griffe.AliasResolutionError, griffe.CyclicAliasError):
        return None


def _names_in(function: griffe.Function) -> set[str]:
    nodes = list(ast.walk(ast.parse(textwrap.dedent(function.source))))
    attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    return attributes | {node.id for node in nodes if isinstance(node, ast.Name)}


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
