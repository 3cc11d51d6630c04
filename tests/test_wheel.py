"""The wheel for an environment with vLLM: its files and its metadata."""

import ast
from configparser import ConfigParser
from email.message import Message
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement

from tests.doc_commands import documented, shell
from tests.paths import REPOSITORY
from tests.project import NOT_PACKED, PROJECT, ROOMS, build_wheel

pytestmark = pytest.mark.slow
MEBIBYTE = 2**20


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


def names(wheel: Path) -> set[str]:
    with ZipFile(wheel) as archive:
        return set(archive.namelist())


def information(wheel: Path, name: str) -> str:
    with ZipFile(wheel) as archive:
        return archive.read(f"prismoe-{PROJECT['version']}.dist-info/{name}").decode()


def metadata(wheel: Path) -> Message:
    return Parser().parsestr(information(wheel, "METADATA"))


def test_pip_installs_it(wheel: Path, tmp_path: Path) -> None:
    readme, page = (
        *documented("pip install /path/to/prismoe"),
        *documented("pip install prismoe-0.1.0-py3-none-any.whl"),
    )
    assert page == f"pip install {wheel.name}"
    for command in (readme.replace("/path/to/prismoe", str(wheel)), page.replace(wheel.name, str(wheel))):
        folder = tmp_path / str(len(command))
        shell(f"python -m {command} --no-deps --no-index --target {folder}", tmp_path)
        assert (folder / "prismoe" / "server" / "commands" / "cli.py").is_file()


def test_the_wheel_is_small(wheel: Path) -> None:
    assert 8 * MEBIBYTE < wheel.stat().st_size < 16 * MEBIBYTE


def test_the_wheel_has_exactly_the_packages_files(wheel: Path) -> None:
    """It has each file of the rooms, except for measurements that need the tests."""
    packed = {"prismoe/__init__.py", "prismoe/py.typed"} | {
        f"prismoe/{file.relative_to(REPOSITORY).as_posix()}"
        for room in ROOMS
        for file in (REPOSITORY / room).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts and NOT_PACKED.isdisjoint(file.parents)
    }
    assert len(ROOMS) == 6
    assert {
        "prismoe/model_plugins/checkpoints/prismoji/model.safetensors",
        "prismoe/model_plugins/checkpoints/prismoji/pictures/NOTICE.txt",
        "prismoe/model_plugins/models/moe_llava/chat_template.jinja",
        "prismoe/server/inspector/static/inspector.html",
    } < packed
    information = f"prismoe-{PROJECT['version']}.dist-info/"
    assert {name for name in names(wheel) if not name.startswith(information)} == packed
    assert f"{information}licenses/LICENSE" in names(wheel)


def test_the_wheel_has_the_command_and_both_plugins(wheel: Path) -> None:
    offered = ConfigParser()
    offered.read_string(information(wheel, "entry_points.txt"))
    plugins = ("vllm.general_plugins", "vllm.endpoint_plugins")
    assert set(offered.sections()) == {"console_scripts", *plugins}
    assert all(set(offered[group]) == {"prismoe"} for group in offered.sections())
    for group in offered.sections():
        module, _, name = offered[group]["prismoe"].partition(":")
        with ZipFile(wheel) as archive:
            program = ast.parse(archive.read(f"{module.replace('.', '/')}.py"))
        assert name in {
            node.name for node in program.body if isinstance(node, ast.FunctionDef | ast.ClassDef)
        }


def test_the_wheels_metadata(wheel: Path) -> None:
    sentence = metadata(wheel)
    assert (sentence["Name"], sentence["Version"]) == ("prismoe", PROJECT["version"])
    assert sentence["License-Expression"] == "Apache-2.0"
    assert sentence["Requires-Python"] == "<3.14,>=3.11"
    assert sentence["Description-Content-Type"] == "text/markdown"
    assert str(sentence.get_payload()).strip() == (REPOSITORY / "README.md").read_text().strip()
    required = [Requirement(text) for text in sentence.get_all("Requires-Dist", [])]
    assert sorted(str(each) for each in required if each.marker is None) == sorted(PROJECT["dependencies"])
