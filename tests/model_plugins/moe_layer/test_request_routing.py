"""The settings with which a request changes its own routing."""

from typing import Any

import pytest
import torch

from prismoe.model_plugins.moe_layer.request_routing import asked_experts, with_numbers, without_numbers


def test_a_requests_settings() -> None:
    assert asked_experts({}, most=4) == (0, 0)
    assert asked_experts({"routing": {}}, most=4) == (0, 0)
    assert asked_experts({"routing": {"tail_experts": 4}}, most=4) == (4, 0)
    assert asked_experts({"routing": {"tail_experts": 3, "head_experts": 1}}, most=4) == (3, 1)
    assert asked_experts({}, most=0) == (0, 0)


@pytest.mark.parametrize(
    ("kwargs", "most", "complaint"),
    [
        ({"routing": {"tail_experts": 5}}, 4, "tail_experts 5; this server allows up to 4"),
        ({"routing": {"head_experts": 0}}, 4, "head_experts has to be a whole number of experts, 1 or more."),
        (
            {"routing": {"tail_experts": "2"}},
            4,
            "tail_experts has to be a whole number of experts, 1 or more.",
        ),
        ({"routing": {"text_experts": 2}}, 4, "text_experts is not known: a request may choose tail_"),
        ({"routing": 2}, 4, "routing has to be an object that holds tail_experts, head_experts or both."),
        ({"routing": None}, 4, "routing has to be an object"),
        ({"routing": {"tail_experts": 1}}, 0, "does not accept numbers of experts from requests"),
        ({"size": 9, "routing": {}}, 4, "may only hold routing, not size"),
    ],
)
def test_impossible_settings_are_refused_with_a_message(
    kwargs: dict[str, Any], most: int, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        asked_experts(kwargs, most)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("numbers", [[256, 257], [383, 511], [512, 2049], [65535, 4099]])
def test_large_numbers_are_passed_exactly(dtype: torch.dtype, numbers: list[int]) -> None:
    rows = with_numbers(torch.randn(1, 2, 5).to(dtype), torch.tensor([numbers]))
    (embeds,), (asked,) = without_numbers([rows[0]])
    assert embeds.shape == (2, 5) and asked.tolist() == [numbers] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_numbers_are_appended_to_the_embeddings(dtype: torch.dtype) -> None:
    embeds_NTD = torch.randn(2, 3, 5).to(dtype)
    rows = with_numbers(embeds_NTD, torch.tensor([[64, 1], [0, 2]]))
    embeds, asked = without_numbers([rows[0], rows[1, 1:]])
    assert torch.equal(embeds[0], embeds_NTD[0]) and torch.equal(embeds[1], embeds_NTD[1, 1:])
    assert asked[0].tolist() == [[64, 1]] * 3
    assert asked[1].tolist() == [[0, 2]] * 2
