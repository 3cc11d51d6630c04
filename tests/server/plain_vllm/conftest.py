"""vLLM's command, and a tiny GLM-4.5V with transformers' answers."""

from pathlib import Path

import pytest

from tests.model_plugins.in_tree.chats import TEXT, TWO_PICTURES
from tests.model_plugins.in_tree.checkpoints import make_checkpoint
from tests.model_plugins.in_tree.reference import Answer, answers
from tests.server.in_tree.asking import MAX_TOKENS
from tests.server.plain_vllm.stock import stock_environment

CHATS = (TEXT, TWO_PICTURES)


@pytest.fixture(scope="session")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stock_environment(tmp_path_factory.mktemp("stock"))


@pytest.fixture(scope="session")
def glm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("glm4v-moe", tmp_path_factory.mktemp("glm"))


@pytest.fixture(scope="session")
def expected(glm: Path) -> list[Answer]:
    """Transformers' answers to CHATS."""
    return answers(glm, CHATS, MAX_TOKENS)
