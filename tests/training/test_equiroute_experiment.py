"""EquiRoute's experiment, as it is modelled here, is close to the paper's results."""

import re
from xml.etree import ElementTree

import pytest
import torch

from prismoe.training.equiroute_experiment import (
    EXPERTS,
    PUBLISHED,
    RATIOS,
    VISION_TOKENS,
    mean_equity,
    plot,
    table,
    top_1_load,
    with_reservation,
)


@pytest.mark.parametrize("ratio", RATIOS)
def test_the_published_values_are_close(ratio: int) -> None:
    message, found = PUBLISHED[ratio], mean_equity(ratio, seeds=200)
    if message.text_share is not None and message.standard_mei is not None:
        assert found.text_share == pytest.approx(message.text_share, abs=0.005)
        assert found.standard_mei == pytest.approx(message.standard_mei, abs=0.03)
    assert found.equiroute_mei == pytest.approx(message.equiroute_mei, abs=0.06)


@pytest.mark.parametrize("ratio", RATIOS)
def test_text_reaches_as_many_experts_as_expected_by_chance(ratio: int) -> None:
    tokens = VISION_TOKENS // ratio
    expected = 1 - (1 - 1 / EXPERTS) ** tokens
    # Vision misses an expert in a few of 200 draws.
    assert mean_equity(ratio, seeds=200).standard_mei == pytest.approx(expected, abs=0.02)


def test_half_of_the_missed_experts_go_to_the_tokens_that_score_them_highest() -> None:
    logits_TE = torch.tensor([[9.0, 1.0, 2.0, 0.0, -1.0], [9.0, 3.0, 0.0, 0.0, -1.0]])
    load_E = top_1_load(logits_TE)
    assert load_E.tolist() == [2, 0, 0, 0, 0]
    assert with_reservation(load_E, logits_TE).tolist() == [2, 1, 1, 0, 0]


def test_nothing_is_reserved_if_nothing_is_missed() -> None:
    logits_TE = torch.eye(3)
    assert with_reservation(top_1_load(logits_TE), logits_TE).tolist() == [1, 1, 1]


def test_the_plot_has_every_point() -> None:
    drawn = ElementTree.fromstring(plot({ratio: mean_equity(ratio, seeds=1) for ratio in RATIOS}))
    svg = "{http://www.w3.org/2000/svg}"
    legend, published_standard = 2, 2
    assert len(list(drawn.iter(f"{svg}use"))) == len(RATIOS) + published_standard + legend
    paths = [path.attrib for path in drawn.iter(f"{svg}path")]
    lines = [path["d"] for path in paths if "stroke: #" in path["style"] and "clip-path" in path]
    assert sum(len(re.findall("[ML]", line)) == len(RATIOS) for line in lines) == 2
    assert "32:1" in [text.text for text in drawn.iter(f"{svg}text")]


def test_the_table_has_published_and_simulated_values() -> None:
    lines = table({ratio: mean_equity(ratio, seeds=1) for ratio in RATIOS}).splitlines()
    assert len(lines) == 1 + len(RATIOS)
    assert "0.029" in lines[-1] and "0.625" in lines[-1]
