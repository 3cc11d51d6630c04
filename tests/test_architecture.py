"""The names in docs/architecture.md exist: symbols in the linked files, and the rooms of the contracts."""

import ast
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

from tests.paths import REPOSITORY

PAGE = (REPOSITORY / "docs" / "architecture.md").read_text()
NAMED = re.findall(r"\[`([\w.]+)`\]\(\.\./([\w/]+\.py)\)", PAGE)
SYMBOLS = sorted(set(NAMED))
ROWS = re.findall(r"^\| (\d(?:\.\d)?) \| (.+?) \|", PAGE, re.M)


@pytest.mark.parametrize(("symbol", "file"), SYMBOLS, ids=[symbol for symbol, _ in SYMBOLS])
def test_each_symbol_is_in_its_file(symbol: str, file: str) -> None:
    assert symbol in symbols_of(REPOSITORY / file)


def test_each_link_to_a_module_names_a_symbol() -> None:
    assert len(SYMBOLS) >= 60
    assert [file for _, file in NAMED] == re.findall(r"\]\(\.\./([^)]+\.py)[^)]*\)", PAGE)


def test_the_rooms_are_those_of_the_contracts() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    contracts = project["tool"]["importlinter"]["contracts"]
    layers = {contract["name"]: contract["layers"] for contract in contracts if contract["type"] == "layers"}
    numbered = [
        *numbered_rooms("", layers["The house"]),
        *numbered_rooms("2.", layers["The rooms of the server"]),
        *numbered_rooms("3.", layers["The rooms of the plugin"]),
    ]
    reported = [(number, room) for number, rooms in ROWS for room in re.findall(r"`(\w+)`", rooms)]
    assert sorted(reported) == sorted(numbered)


def test_a_symbol_is_found_in_all_places_of_a_module(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text(
        "A = 1\nB: int = 2\ndef f():\n    inner = 3\nasync def g(): ...\n"
        "class C:\n    D = 4\n    def m(self): ...\n    class E:\n        async def n(self): ...\n"
    )
    assert symbols_of(file) == {"A", "B", "f", "g", "C", "C.D", "C.m", "C.E", "C.E.n"}


@cache
def symbols_of(file: Path) -> set[str]:
    """The classes, functions and constants of a module, and the members of a class as `Class.name`."""
    return set(names(ast.parse(file.read_text()).body))


def names(body: list[ast.stmt]) -> list[str]:
    found = []
    for statement in body:
        match statement:
            case ast.ClassDef(name=name, body=own):
                found += [name, *(f"{name}.{each}" for each in names(own))]
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                found.append(name)
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                found.append(name)
    return found


def numbered_rooms(before: str, layers: list[str]) -> list[tuple[str, str]]:
    """Each room in the layers of a contract with its number, from the top."""
    return [
        (f"{before}{number}", room.split(".")[-1])
        for number, layer in enumerate(layers, 1)
        for room in layer.split(" | ")
    ]
