"""docs/models.md matches the table, and the table matches vLLM and the start's messages."""

from collections import Counter

import pytest
from vllm import ModelRegistry

from prismoe.model_plugins.models.in_tree.page import MOE_LLAVA, page
from prismoe.model_plugins.models.in_tree.table import IN_TREE
from prismoe.model_plugins.moe_layer.attached.attach import why_unseen
from tests.model_plugins.in_tree.checkpoints import MODELS
from tests.model_plugins.moe_layer.native_layers import moe_layers
from tests.paths import REPOSITORY

ARCHITECTURES = [name for model in (*MOE_LLAVA, *IN_TREE) for name in model.architectures]
UNSEEN = {model.architectures[0]: model.unseen for model in IN_TREE if model.unseen}
STARTS: dict[str, tuple[list[int], list[str]]] = {
    "Moondream3ForCausalLM": ([], ["text", "image"]),
}
"""The decoder layers of a model's runners, and its modalities."""


def test_the_page_is_made_of_the_table() -> None:
    """If it differs, run `make models-page`."""
    assert (REPOSITORY / "docs" / "models.md").read_text() == page()


def test_each_model_of_vllms_is_in_its_registry_and_listed_once() -> None:
    reported = [name for model in IN_TREE for name in model.architectures]
    assert {*reported} <= {*ModelRegistry.get_supported_archs()}
    assert max(Counter(ARCHITECTURES).values()) == 1


@pytest.mark.parametrize("architecture", UNSEEN)
def test_the_page_matches_the_starts_messages(architecture: str) -> None:
    layers, modalities = STARTS[architecture]
    message = why_unseen(architecture, moe_layers(*layers), modalities)
    assert (
        message
        == f"{UNSEEN[architecture]} It is served as vLLM serves it, and nothing of its routing is shown."
    )


def test_each_tested_model_has_a_tiny_checkpoint() -> None:
    made = {model.served_as for model in MODELS.values()} | {"TransformersMultiModalMoEForCausalLM"}
    assert {name for model in IN_TREE if model.tested for name in model.architectures} <= made
