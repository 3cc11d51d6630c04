"""The contents of pyproject.toml, and the packages that it builds."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from tests.paths import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
ROOMS = sorted(part.name for part in (REPOSITORY / "prismoe").iterdir() if part.is_symlink())
NOT_PACKED = {REPOSITORY / "benchmarks" / name for name in ("gpu_check", "monitoring", "serving", "skipping")}
"""They import tests, or packages that only tests need."""


def build_wheel(folder: Path) -> Path:
    """Build a wheel in a folder from an sdist, like `python -m build`, with the installed backend."""
    source, built = folder / "source", folder / "built"
    source.mkdir()
    built.mkdir()
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    for name in ("prismoe", *ROOMS):
        shutil.copytree(REPOSITORY / name, source / name, symlinks=True)
    sdist = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    _run(source, sys.executable, "-c", sdist, str(built))
    [archive] = built.iterdir()
    pip = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index")
    _run(built, *pip, archive.name)
    [file] = built.glob("*.whl")
    return file


def _run(folder: Path, *command: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
