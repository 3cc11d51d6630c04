"""Every form of config.json, and what can't be served."""

from typing import Any

import pytest
from transformers import PretrainedConfig

from prismoe.model_plugins.moe_llava.config import check_servable, experts_by_layer, routing_in_force
from prismoe.model_plugins.routing.topk import TopK


def config(moe: dict[str, Any] | None = None, **settings: Any) -> PretrainedConfig:
    settings = {"mm_image_tower": "tower", "num_hidden_layers": 5} | settings
    return PretrainedConfig(**settings, **({} if moe is None else {"moe": moe}))


@pytest.mark.parametrize(
    ("moe", "expected"),
    [
        ({"moe_layers_idx": [1, 3], "num_experts": [4, 8]}, {1: 4, 3: 8}),
        ({"moe_layers_idx": [1, 3], "num_experts": [4]}, {1: 4, 3: 4}),
        ({"moe_mode": "sparse", "num_experts": [4]}, {0: 4, 2: 4, 4: 4}),
        ({"moe_mode": "dense", "num_experts": [2]}, dict.fromkeys(range(5), 2)),
        ({"moe_mode": "first_half", "num_experts": [4, 6]}, {0: 4, 1: 6}),
        ({"moe_mode": "second_half", "num_experts": [4]}, {2: 4, 3: 4, 4: 4}),
        ({"moe_enable": False, "num_experts": [4]}, {}),
        (None, {}),
    ],
)
def test_where_the_experts_are(moe: dict[str, Any] | None, expected: dict[int, int]) -> None:
    assert experts_by_layer(config(moe)) == expected


def test_experts_that_do_not_fit_the_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="names 3 MoE layers but gives 2 numbers of experts"):
        experts_by_layer(config({"moe_layers_idx": [0, 1, 2], "num_experts": [4, 4]}))


def test_k_of_1_keeps_the_routers_probability() -> None:
    moe = {"moe_layers_idx": [0], "num_experts": [4], "top_k_experts": 1}
    assert routing_in_force(config(moe), None).layers[0].policy == TopK(top_k=1, norm_topk_prob=False)


def test_a_dense_checkpoint_has_nothing_to_route() -> None:
    with pytest.raises(ValueError, match="no MoE layers"):
        routing_in_force(config(), {"policy": "topk"})


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"mm_image_tower": None}, "names no image tower"),
        ({"mm_video_tower": "LanguageBind/video"}, "serves images only"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end"),
        ({"image_projector_type": "linear"}, "'linear'"),
    ],
)
def test_what_cannot_be_served_is_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        check_servable(config(**settings))
