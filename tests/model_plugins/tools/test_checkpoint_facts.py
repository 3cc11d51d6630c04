"""The facts that `prismoe check` prints about a checkpoint, without an engine."""

import json
from pathlib import Path
from typing import Any

import pytest

from prismoe.model_plugins.tools.checkpoint_facts import checkpoint_facts
from tests.model_plugins.tiny_checkpoints import make_checkpoint


@pytest.mark.parametrize(
    ("family", "positions", "other_name"),
    [
        ("phi", 2048, "seq_length"),
        ("stablelm", 4096, "seq_length"),
        ("qwen", 4000, "max_position_embeddings"),
    ],
)
def test_positions_under_the_familys_name(
    tmp_path: Path, family: str, positions: int, other_name: str
) -> None:
    settings: dict[str, Any] = {"seq_length": 4000} if family == "qwen" else {}
    checkpoint = make_checkpoint(tmp_path, family, **settings)
    file = checkpoint / "config.json"
    config = json.loads(file.read_text())
    config.pop(other_name, None)
    file.write_text(json.dumps(config))
    assert checkpoint_facts(checkpoint).decoder.positions == positions
