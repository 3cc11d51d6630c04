"""The environment variables that `prismoe serve` sets before vLLM is imported."""

import os
from pathlib import Path

import pytest

from prismoe.model_plugins.files.bundled import bundled_checkpoint
from prismoe.server import environment


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that the test can change."""
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(environment, "ask_to_end_with_parent", lambda: None)


def test_the_bundled_model_never_uses_the_hub() -> None:
    environment.prepare_environment(str(bundled_checkpoint()))
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_a_folder_can_need_a_tower_of_the_hub(tmp_path: Path) -> None:
    environment.prepare_environment(str(tmp_path))
    assert "HF_HUB_OFFLINE" not in os.environ


@pytest.mark.parametrize("message", ["0", "1"])
def test_the_users_variables_win(message: str) -> None:
    os.environ["HF_HUB_OFFLINE"] = message
    environment.prepare_environment(str(bundled_checkpoint()))
    assert os.environ["HF_HUB_OFFLINE"] == message


@pytest.mark.parametrize(
    ("message", "named"),
    [
        (None, None),
        ("", "prismoe"),
        ("mine", "mine,prismoe"),
        ("prismoe", "prismoe"),
        ("a,prismoe,b", "a,prismoe,b"),
    ],
)
def test_vllm_loads_prismoe_beside_other_plugins(message: str | None, named: str | None) -> None:
    if message is not None:
        os.environ["VLLM_PLUGINS"] = message
    environment.prepare_environment(str(bundled_checkpoint()))
    assert os.environ.get("VLLM_PLUGINS") == named
