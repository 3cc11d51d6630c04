"""The engine's configuration, kernels and weights on simulated GPUs equal those in `expected`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cuda_config.page import EXPECTED
from tests.paths import REPOSITORY


@pytest.mark.timeout(1800)
def test_the_choices_are_those_on_the_page(capability: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.cuda_config.chosen", capability, str(tmp_path)],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    chosen = json.loads((tmp_path / "chosen.json").read_text())
    assert chosen == json.loads((EXPECTED / f"{capability}.json").read_text())
