"""A release's files are read as if they were imported. The release here is small and made up."""

import sys
from collections.abc import Iterator
from importlib import invalidate_caches
from pathlib import Path
from zipfile import ZipFile

import griffe
import pytest

from prismoe.model_plugins.vllm_seams.check import Needed, VLLMChanged, check
from tests.model_plugins.vllm_seams import compat
from tests.paths import REPOSITORY

FILES = {
    "__init__.py": "from made_up.engine import Engine\n",
    "base.py": (
        "class Base:\n"
        "    def _step(self, output, late=False):\n"
        "        self._rows = output.tokens\n"
        "    @classmethod\n"
        "    def of(cls, config): ...\n"
    ),
    "engine.py": "from made_up.base import Base\nclass Engine(Base): ...\ndef decode(data, *, most=1): ...\n",
    "platform/__init__.py": "from made_up.engine import *\n",
}
AS_KNOWN = [
    Needed("made_up.engine:Engine._step", ("output", "late"), attributes=("_rows", "tokens")),
    Needed("made_up:Engine.of", ("config",)),
    Needed("made_up.engine:decode", ("cap|data", "most")),
    Needed("made_up.platform:decode", ("data",)),
]
CHANGED = [
    Needed("made_up.core:Engine._step"),
    Needed("made_up.engine:Core._step"),
    Needed("made_up.engine:Engine._run_step"),
    Needed("made_up.engine:Engine._step", ("late", "output")),
    Needed("made_up.engine:Engine._step", ("output", "late", "more")),
    Needed("made_up.engine:Engine._step", attributes=("_rows", "_columns")),
    Needed("made_up.engine:decode", ("cap|bytes",)),
]


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name, text in FILES.items():
        file = tmp_path / "made_up" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    invalidate_caches()
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "made_up"]:
        del sys.modules[name]


def read(folder: Path) -> griffe.Module:
    return compat.read(folder, "made_up")


def test_known_code_passes_both_checks(release: Path) -> None:
    check(AS_KNOWN)
    assert not list(compat.changed(read(release), AS_KNOWN))


@pytest.mark.parametrize("needed", CHANGED)
def test_changed_code_fails_both_checks(needed: Needed, release: Path) -> None:
    with pytest.raises(VLLMChanged):
        check([needed])
    [line] = compat.changed(read(release), [*AS_KNOWN, needed])
    assert line.startswith(needed.name.replace(":", "."))


def test_a_private_name_that_a_release_renames_is_reported(release: Path) -> None:
    base = release / "made_up" / "base.py"
    base.write_text(base.read_text().replace("_step", "_run_step"))
    assert list(compat.changed(read(release), AS_KNOWN)) == [
        "made_up.engine.Engine._step is not there, or is no function"
    ]


def test_each_import_exists_in_one_of_its_places(release: Path) -> None:
    program = release / "program.py"
    program.write_text(
        "from made_up import Engine, engine\n"
        "def late():\n    from made_up.engine import decode, encode\n"
        "try:\n    from made_up.common import Base\n"
        "except ImportError:\n    from made_up.base import Base\n"
        "try:\n    from made_up.common import args\n"
        "except ImportError:\n    from made_up.launchers import args\n"
    )
    assert sorted(compat.missing(read(release), compat.imported(program, "made_up"))) == [
        "made_up.common.args or made_up.launchers.args is imported, and is not there",
        "made_up.engine.encode is imported, and is not there",
    ]


def test_missing_names_of_a_wheel_are_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wheel = tmp_path / "vllm-1.0-py3-none-any.whl"
    with ZipFile(wheel, "w") as packed:
        packed.writestr("vllm/__init__.py", "def start(args): ...\n")
        packed.writestr("vllm/kernels.so", "no Python")
    monkeypatch.setattr(compat, "all_needs", lambda: [Needed("vllm:start", ("args",)), Needed("vllm:_stop")])
    assert compat.main(wheel) == 1
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("vllm-1.0-py3-none-any.whl: 2 functions that prismoe needs, and 1")
    assert printed[1] == "vllm._stop is not there, or is no function"
    assert "vllm.platforms.current_platform is imported, and is not there" in printed
    assert not list(tmp_path.rglob("*.so"))


def test_the_imports_of_all_rooms_are_read() -> None:
    """This includes imports behind `if` and in functions, and names with two possible places."""
    seam = REPOSITORY / "model_plugins" / "vllm_seams" / "front" / "cli_args.py"
    place = "vllm.entrypoints.{}.cli_args.make_arg_parser"
    assert (place.format("common"), place.format("launchers")) in set(compat.imported(seam, "vllm"))
    bench = REPOSITORY / "loadtests" / "bench.py"
    assert ("vllm.benchmarks.serve.main_async",) in set(compat.imported(bench, "vllm"))
