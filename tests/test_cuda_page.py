"""docs/cuda.md says what `make test-cuda-config` holds."""

import json

import pytest

from tests.cuda_config.page import CAPABILITIES, EXPECTED, page
from tests.model_plugins.tiny_checkpoints import FAMILIES
from tests.paths import REPOSITORY


def test_the_page_says_what_is_held() -> None:
    assert (REPOSITORY / "docs" / "cuda.md").read_text() == page()


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_each_family_is_among_what_is_held(capability: str) -> None:
    held = json.loads((EXPECTED / f"{capability}.json").read_text())
    assert [*held["MoE-LLaVA"]] == [*FAMILIES] == [*held["with weights"]][: len(FAMILIES)]
