"""docs/models.md is what the table says, and the table is what vLLM and the start say."""

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
"""By model the decoder layers of its runners, and its modalities."""


def test_the_page_is_made_of_the_table() -> None:
    """Where it is not: `make models-page`."""
    assert (REPOSITORY / "docs" / "models.md").read_text() == page()


def test_each_model_of_vllms_is_in_its_registry_and_told_once() -> None:
    told = [name for model in IN_TREE for name in model.architectures]
    assert {*told} <= {*ModelRegistry.get_supported_archs()}
    assert max(Counter(ARCHITECTURES).values()) == 1


@pytest.mark.parametrize("architecture", UNSEEN)
def test_the_page_says_what_the_start_says(architecture: str) -> None:
    layers, modalities = STARTS[architecture]
    said = why_unseen(architecture, moe_layers(*layers), modalities)
    assert (
        said == f"{UNSEEN[architecture]} It is served as vLLM serves it, and nothing of its routing is shown."
    )


def test_each_tested_model_has_a_tiny_checkpoint() -> None:
    made = {model.served_as for model in MODELS.values()} | {"TransformersMultiModalMoEForCausalLM"}
    assert {name for model in IN_TREE if model.tested for name in model.architectures} <= made
