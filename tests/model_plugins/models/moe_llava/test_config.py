"""All forms of config.json, and configs that can't be served."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PretrainedConfig

from prismoe.model_plugins.models.moe_llava.config import (
    check_config_file,
    check_servable,
    experts_by_layer,
    routing_in_force,
)
from prismoe.model_plugins.routing.policies.topk import TopK
from tests.model_plugins.engine import PHI
from tests.paths import DATA


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
def test_the_layers_with_experts(moe: dict[str, Any] | None, expected: dict[int, int]) -> None:
    assert experts_by_layer(config(moe)) == expected


def test_experts_that_do_not_fit_the_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="names 3 MoE layers but gives 2 numbers of experts"):
        experts_by_layer(config({"moe_layers_idx": [0, 1, 2], "num_experts": [4, 4]}))


@pytest.mark.parametrize("layers", [[0, 5], [-1, 2], [2, 2]])
def test_experts_in_missing_layers_are_refused(layers: list[int]) -> None:
    with pytest.raises(ValueError, match=r"has layers 0 to 4: correct moe.moe_layers_idx"):
        experts_by_layer(config({"moe_layers_idx": layers, "num_experts": [4, 4]}))


@pytest.mark.parametrize(
    ("moe", "complaint"),
    [
        ({"moe_mode": "thin"}, "moe.moe_mode is 'thin' in the checkpoint's config.json: input should be"),
        ({"num_experts": [4, 0]}, "moe.num_experts.1 is 0 in the checkpoint's config.json: input should be"),
        ([], r"moe. is \[\] in the checkpoint's"),
    ],
)
def test_moe_settings_of_a_wrong_kind_are_refused(moe: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        experts_by_layer(config(moe))


def test_with_k_1_the_routers_probability_is_kept() -> None:
    moe = {"moe_layers_idx": [0], "num_experts": [4], "top_k_experts": 1}
    assert routing_in_force(config(moe), None).layers[0].policy == TopK(top_k=1, norm_topk_prob=False)


def test_a_dense_checkpoint_has_no_routing() -> None:
    with pytest.raises(ValueError, match="no MoE layers"):
        routing_in_force(config(), {"policy": "topk"})


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"mm_image_tower": None}, "names no image tower"),
        ({"mm_video_tower": "LanguageBind/video"}, "serves images only"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end"),
        ({"image_projector_type": "linear"}, "'linear'"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantised already"),
    ],
)
def test_unsupported_settings_are_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        check_servable(config(**settings))


FAMILIES = {"phi": PHI, "stablelm": DATA / "names" / "stablelm", "qwen": DATA / "names" / "qwen"}


def write_config(folder: Path, family: str, **changes: Any) -> Path:
    """Write a family's config.json with changes. A key that is changed to None is left out."""
    content = json.loads((FAMILIES[family] / "config.json").read_text()) | changes
    kept = {key: value for key, value in content.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_the_authors_configs_are_accepted(family: str, tmp_path: Path) -> None:
    check_config_file(write_config(tmp_path, family))


@pytest.mark.parametrize(
    ("family", "changes", "sentence"),
    [
        (
            "phi",
            {"model_type": "llama"},
            "gives the model_type 'llama'; prismoe serves moe_llava_phi, llava_phi",
        ),
        ("phi", {"model_type": None}, "gives the model_type None"),
        ("phi", {"hidden_size": None}, "lacks hidden_size"),
        ("phi", {"num_attention_heads": 3}, "not a multiple of num_attention_heads"),
        ("stablelm", {"rope_pct": None}, "lacks rope_pct"),
        ("stablelm", {"rope_pct": 1.5}, "rope_pct is 1.5 in the checkpoint's config.json: input should be"),
        ("stablelm", {"rope_pct": 0.01}, "rope_pct is 0.01 in .*, which rotates 0 of each head's"),
        (
            "phi",
            {"hidden_size": 128, "num_attention_heads": 2, "partial_rotary_factor": 0.4},
            "partial_rotary_factor is 0.4 in .*, which rotates 25 of each head's 64 numbers",
        ),
        ("stablelm", {"hidden_size": "wide"}, "hidden_size is 'wide' in the checkpoint's config.json: input"),
        ("qwen", {"seq_length": None}, "lacks seq_length"),
        ("qwen", {"architectures": []}, r"architectures is \[\] in the checkpoint's config.json"),
    ],
)
def test_wrong_config_files_are_refused(
    tmp_path: Path, family: str, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        check_config_file(write_config(tmp_path, family, **changes))


def test_no_config_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no config.json, so it is not a checkpoint."):
        check_config_file(tmp_path)
