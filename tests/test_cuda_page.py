"""docs/cuda.md has the expected results of `make test-cuda-config`."""

import json

import pytest

from tests.cuda_config.page import CAPABILITIES, EXPECTED, page
from tests.model_plugins.tiny_checkpoints import FAMILIES
from tests.paths import REPOSITORY


def test_the_page_has_the_expected_results() -> None:
    assert (REPOSITORY / "docs" / "cuda.md").read_text() == page()


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_each_family_is_in_the_expected_results(capability: str) -> None:
    held = json.loads((EXPECTED / f"{capability}.json").read_text())
    assert [*held["MoE-LLaVA"]] == [*FAMILIES] == [*held["with weights"]][: len(FAMILIES)]
