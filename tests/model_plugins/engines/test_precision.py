"""Half precision and quantised experts are close to the plain float32 implementation, at real head sizes."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from prismoe.model_plugins.models.moe_llava.families.family import Family
from prismoe.model_plugins.models.moe_llava.families.phi import PHI
from prismoe.model_plugins.models.moe_llava.families.qwen import QWEN
from prismoe.model_plugins.models.moe_llava.families.stablelm import STABLELM
from prismoe.model_plugins.models.moe_llava.quantization import check_quantization
from tests.model_plugins.engine import engine, greedy, prompt_logits
from tests.model_plugins.engines.test_families import pixel_values, tokens
from tests.model_plugins.plain_moe_llava import PlainMoELLaVA
from tests.model_plugins.tiny_checkpoints import make_checkpoint
from tests.paths import DATA

TEXT = "USER: <image>\nWhat is this? ASSISTANT:"
HAS_AMX = torch.cpu._is_amx_tile_supported()
INT8 = {"quantization": "int8_per_channel_weight_only", "dtype": "bfloat16"}


def heads_of(size: int, number: int = 2, **changes: Any) -> dict[str, Any]:
    """A config whose heads have this size."""
    heads = {
        "hidden_size": number * size,
        "num_attention_heads": number,
        "num_key_value_heads": number,
        "kv_channels": size,
    }
    return heads | changes


# The median is compared: if two experts are nearly equal, rounding can choose another one, and a few
# tokens then differ much. The logits' standard deviation is 1.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], float]] = {
    # Half of the rotated part is 12, and a head is 20: neither fits the vectors of vLLM's kernel.
    "phi-bfloat16": ("phi", heads_of(64, partial_rotary_factor=0.375), {"dtype": "auto"}, 0.02),
    "stablelm-bfloat16": ("stablelm", heads_of(20, 8, rope_pct=0.8), {"dtype": "auto"}, 0.02),
    "qwen-bfloat16": ("qwen", heads_of(128), {"dtype": "auto"}, 0.02),
    "phi-float16": ("phi", heads_of(80), {"dtype": "float16"}, 0.003),
    "stablelm-int8": ("stablelm", heads_of(64), INT8, 0.03),
}


@pytest.mark.parametrize(("family", "config", "options", "tolerance"), CASES.values(), ids=CASES.keys())
def test_logits_stay_near_float32(
    tmp_path: Path, family: str, config: dict[str, Any], options: dict[str, Any], tolerance: float
) -> None:
    if "quantization" in options and not HAS_AMX:
        pytest.skip("vLLM's int8 experts need AMX; that they are refused elsewhere is tested below")
    checkpoint = make_checkpoint(tmp_path, family, dtype=torch.bfloat16, **config)
    plain = PlainMoELLaVA(checkpoint)
    image = Image.open(DATA / "image.png").convert("RGB")
    with engine(checkpoint, **options) as llm:
        prompt: Any = {"prompt": TEXT, "multi_modal_data": {"image": image}}
        (output,) = llm.generate(prompt, greedy(1), use_tqdm=False)
        trace = plain(tokens(llm, TEXT), pixel_values(plain, checkpoint, [image]))
        dtype = llm.model_config.dtype
    assert dtype == (torch.float16 if options["dtype"] == "float16" else torch.bfloat16)
    assert np.median(np.abs(prompt_logits(output) - trace.logits.numpy())) < tolerance


def quantized(method: str | None, linear: str | None = None, moe: str | None = None) -> Any:
    settings = SimpleNamespace(linear=linear, moe=moe, targets=None) if linear or moe else None
    return SimpleNamespace(quantization=method, quantization_config=settings)


@pytest.mark.parametrize(
    ("model", "family", "has_amx", "sentence"),
    [
        (quantized("experts_int8"), PHI, True, "Phi's have another form"),
        (quantized("experts_int8"), QWEN, False, "need AMX"),
        (quantized("fp8"), QWEN, True, "--quantization fp8 does not run on CPU: use int8_per_channel"),
        (
            quantized("fp8_per_block", "fp8_per_block_static", "fp8_per_block_static"),
            STABLELM,
            True,
            "--quantization fp8_per_block does not run on CPU",
        ),
        (quantized("mxfp4", "mxfp4", "mxfp4"), STABLELM, True, "--quantization mxfp4 does not run on CPU"),
    ],
)
def test_quantization_that_cannot_run_is_refused(
    monkeypatch: pytest.MonkeyPatch, model: Any, family: Family, has_amx: bool, sentence: str
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_amx)
    with pytest.raises(ValueError, match=sentence):
        check_quantization(model, family)


@pytest.mark.parametrize(
    "model",
    [
        quantized(None),
        quantized("experts_int8"),
        quantized("int8_per_channel_weight_only", moe="int8_per_channel_static"),
        quantized("online", moe="fp8_per_block_static"),
    ],
)
def test_quantization_that_runs_is_accepted(monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    check_quantization(model, STABLELM)
