"""The table's figures, from a server's counts and answers."""

from typing import Any

import pytest

from prismoe.training.scores.measure import Row, experts_per_token


def test_experts_a_token_over_all_layers() -> None:
    load: dict[str, Any] = {
        "modalities": ["text", "image"],
        "expert_tokens": [[[3, 1], [10, 10]], [[2, 2], [5, 15]]],
        "tokens": [[2, 10], [2, 10]],
    }
    assert experts_per_token(load) == pytest.approx({"text": 2.0, "image": 2.0})
    load["tokens"] = [[4, 10], [4, 30]]
    assert experts_per_token(load) == pytest.approx({"text": 1.0, "image": 1.0})


def test_a_row_is_relative_to_the_first() -> None:
    first = Row("bundled", 90, 100, {"text": 2.0, "image": 2.5})
    assert Row("fitted", 81, 100, {"text": 2, "image": 1}).markdown(first) == (
        "| fitted | 81.0% | 90.0% | 1.00 | 2.00 |"
    )
