"""Calibrated settings are only valid for the checkpoint that they were fitted to."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from prismoe.model_plugins.files.weight_files import weights_digest
from prismoe.model_plugins.models.moe_llava.config import routing_in_force
from prismoe.model_plugins.plugin import register
from prismoe.model_plugins.routing.any_gate import OperatorPolicies
from prismoe.model_plugins.routing.calibrated import ModelIdentity
from tests.model_plugins.engine import PHI

MODEL: dict[str, Any] = {"architecture": "A", "layers": 48, "experts": 128, "top_k": 8, "weights": "0" * 64}
MEASURED: dict[str, Any] = {
    "prompts": 1,
    "tokens": {"text": 3},
    "skipped": {"text": [0.5]},
    "divergence": 0.1,
    "layer_divergence": {},
    "rank_error": 0.0,
}
ROUTING = {"policy": "entropy", "low": 0.2, "calibrated": {"model": MODEL, "measured": MEASURED}}


def test_the_model_is_separated_from_the_settings() -> None:
    policies = OperatorPolicies.of(ROUTING)
    assert policies.settings == {"policy": "entropy", "low": 0.2}
    assert policies.calibrated_for == ModelIdentity(**MODEL)


@pytest.mark.parametrize(
    ("name", "value"),
    [("architecture", "B"), ("layers", 47), ("experts", 64), ("top_k", 4), ("weights", "1" * 64)],
)
def test_another_model_is_refused(name: str, value: object) -> None:
    fitted, served = ModelIdentity(**MODEL), ModelIdentity(**MODEL | {name: value})
    fitted.check(ModelIdentity(**MODEL))
    with pytest.raises(ValueError, match=r"calibrated for another model .* run prismoe calibrate on this"):
        fitted.check(served)
    if name == "weights":
        fitted.check_weights(fitted.weights)
        with pytest.raises(ValueError, match="calibrated for another model"):
            fitted.check_weights(served.weights)


def test_a_moe_llava_accepts_none() -> None:
    register()
    with pytest.raises(ValueError, match=r"calibrated for another model .* leave them out"):
        routing_in_force(AutoConfig.from_pretrained(PHI), ROUTING)


@pytest.mark.parametrize(
    "broken", [{}, {"model": MODEL}, {"model": MODEL | {"more": 1}, "measured": MEASURED}]
)
def test_a_file_that_calibrate_did_not_write_is_refused(broken: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"calibrated\.m\S+ is not as prismoe calibrate writes it"):
        OperatorPolicies.of({**ROUTING, "calibrated": broken})


def test_other_weights_have_another_digest(tmp_path: Path) -> None:
    content = bytearray(range(256)) * 10_000
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(content)
    assert weights_digest(tmp_path / "one") == weights_digest(tmp_path / "two")
    content[-1] ^= 1
    (tmp_path / "two" / "model.safetensors").write_bytes(content)
    assert weights_digest(tmp_path / "one") != weights_digest(tmp_path / "two")
