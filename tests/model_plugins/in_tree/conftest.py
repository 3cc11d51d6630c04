"""Tiny checkpoints of vLLM's own models, which a test process writes once."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.model_plugins.in_tree.checkpoints import make_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function that returns the folder of a name in `checkpoints.MODELS`."""
    folder = tmp_path_factory.mktemp("in_tree")
    return cache(lambda name: make_checkpoint(name, folder))
