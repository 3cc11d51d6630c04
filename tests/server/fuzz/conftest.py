"""A server whose processes are watched for files and addresses that they access."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from prismoe.model_plugins.files.bundled import bundled_checkpoint
from tests.server.fuzz.faults import Watched
from tests.server.fuzz.grammar import MODEL
from tests.server.fuzz.tripwires import tripwires
from tests.server.log_lines import LogLines
from tests.server.running import Server

CASES = int(os.environ.get("PRISMOE_FUZZ_CASES", "300"))
"""The number of requests in test_bodies.py.

If it is set, both checkpoints are served, one after the other.
"""

WITHOUT_PAD = "without pad"
"""A copy of the bundled checkpoint that does not pad pictures.

With it, vLLM's processor accepts a string as a picture, and opens the file or URL that it names.
"""
CHECKPOINTS = [WITHOUT_PAD, "bundled"] if "PRISMOE_FUZZ_CASES" in os.environ else [WITHOUT_PAD]

LIMITS = httpx.Limits(keepalive_expiry=1)
"""The client drops connections before this age: the server closes an idle one after five seconds."""


@pytest.fixture(scope="package", params=CHECKPOINTS)
def watched(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    picture_folder: Path,
    picture: bytes,
) -> Iterator[Watched]:
    """A server that may read pictures from one folder. The canary is next to the folder."""
    folder = tmp_path_factory.mktemp("fuzz")
    checkpoint = bundled_checkpoint()
    if request.param == WITHOUT_PAD:
        checkpoint = shutil.copytree(checkpoint, folder / "checkpoint")
        config = json.loads((checkpoint / "config.json").read_text())
        del config["image_aspect_ratio"]
        (checkpoint / "config.json").write_text(json.dumps(config))
    options = ("--model", str(checkpoint), "--served-model-name", MODEL, "--max-model-len", "512")
    with tripwires(folder, picture) as wires:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in wires.environment.items():
                patch.setenv(name, value)
            server = Server(folder / "log", *options, "--allowed-local-media-path", str(picture_folder))
        json_type = {"Content-Type": "application/json"}
        try:
            server.wait_until_ready()
            wires.reached()  # A start may look up more names than a request.
            with httpx.Client(base_url=server.url, timeout=60, headers=json_type, limits=LIMITS) as http:
                yield Watched(server, http, wires, LogLines(server))
        finally:
            server.stop()
