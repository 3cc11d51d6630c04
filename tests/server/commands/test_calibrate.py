"""`prismoe calibrate` with a tiny checkpoint: its result can be served, and routes as it was fitted."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from vllm import SamplingParams

from prismoe.model_plugins.tools.calibrate.calibrate import prepared, recorded_checkpoint
from prismoe.model_plugins.tools.settings import CalibrateSettings
from prismoe.server.commands.cli import main
from tests.doc_commands import documented
from tests.model_plugins.engine import PHI, engine
from tests.model_plugins.tools.check.test_check import assert_one_sentence, prismoe


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number in range(5):
        picture = Image.new("RGB", (60, 40 + 5 * number), (40 * number, 255 - 40 * number, 128))
        ImageDraw.Draw(picture).ellipse((5 * number, 5, 30 + 5 * number, 30), fill="orange")
        picture.save(folder / f"{number}.png")
    return folder


def routing_of(folder: Path) -> dict[str, Any]:
    routing: dict[str, Any] = json.loads((folder / "config.json").read_text())["prismoe_routing"]
    return routing


@pytest.mark.engine
@pytest.mark.parametrize("command", documented("prismoe calibrate MODEL DST"))
def test_each_command_of_the_page_fits_its_policy(command: str, images: Path, tmp_path: Path) -> None:
    fitted = tmp_path / "fitted"
    names = {"MODEL": PHI, "DST": fitted, "DIR": images}
    _, *arguments = [names.get(word, word) for word in shlex.split(command)]
    done = prismoe(*arguments)
    assert done.returncode == 0, done.stderr
    routing = routing_of(fitted)
    assert routing["policy"] == arguments[arguments.index("--policy") + 1]


@pytest.mark.engine
def test_a_fitted_gmm_serves(images: Path, tmp_path: Path) -> None:
    fitted = tmp_path / "fitted"
    settings = json.dumps({"latent": 8, "components": 2})
    done = prismoe("calibrate", PHI, fitted, "--policy", "gmm", "--images", images, "--routing", settings)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[2:4]] == ["0", "2"]
    assert routing_of(fitted) == {"policy": "gmm", "top_k": 2, "latent": 8, "components": 2}
    before, after = load_file(PHI / "model.safetensors"), load_file(fitted / "model.safetensors")
    assert before.keys() < after.keys()
    assert {name.rpartition(".")[0] for name in after.keys() - before.keys()} == {
        f"model.layers.{layer}.mlp.deepspeed_moe.router" for layer in (0, 2)
    }
    with engine(fitted) as llm:
        prompt: Any = {
            "prompt": "USER: <image>\nWhat? ASSISTANT:",
            "multi_modal_data": {"image": Image.open(images / "2.png")},
        }
        llm.generate([prompt], SamplingParams(temperature=0, max_tokens=4))
        routing = llm.collective_rpc("prismoe_routing")[0]
        load = llm.collective_rpc("prismoe_expert_load")[0]
    assert {layer["policy"]["policy"] for layer in routing["layers"]} == {"gmm"}
    assert routing["source"] == "checkpoint"
    assert [sum(vision) for _, vision in load["expert_tokens"]] == [2 * 16, 2 * 16]


@pytest.mark.engine
def test_dual_threshold_measures_importances_and_skips(images: Path, tmp_path: Path) -> None:
    fitted = tmp_path / "fitted"
    options = ("--skip-overall", "0.25", "--max-images", "3")
    done = prismoe("calibrate", PHI, fitted, "--policy", "dual_threshold", "--images", images, *options)
    assert done.returncode == 0, done.stderr
    routing = routing_of(fitted)
    layers = [routing | routing.get("layers", {}).get(layer, {}) for layer in ("0", "2")]
    for modality in ("text", "vision"):
        importances = [layer[f"{modality}_importance"] for layer in layers]
        assert sum(importances) == pytest.approx(1)
        assert min(importances) > 0
        assert importances != [0.5, 0.5]  # these would be the values if no layer made a difference
    rows = [line.replace(" → ", "→").split() for line in done.stdout.splitlines()[2:4]]
    skipped = [1 - sum(float(row[at].removeprefix("2.00→")) for row in rows) / 4 for at in (1, 2)]
    assert min(skipped) - 0.01 <= 0.25 <= max(skipped) + 0.01  # of all uses, and both modalities have some


@pytest.mark.engine
def test_a_trial_routing_changes_the_output_like_the_experts_that_it_skips(tmp_path: Path) -> None:
    """A layer's importance for a modality is measured with thresholds that skip all of its experts."""
    settings = CalibrateSettings(
        model=str(PHI), destination=tmp_path / "fitted", policy="dual_threshold", max_images=2, verbose=False
    )
    with recorded_checkpoint(prepared(settings)) as (_, data):
        cases = [(layer, modality) for layer in data.layers for modality in ("text", "vision")]
        routings: list[dict[str, Any]] = [
            {
                "policy": "dual_threshold",
                "keep_best": False,
                "layers": {f"{layer}": {f"{modality}_threshold": 2}},
            }
            for layer, modality in cases
        ]
        assert data.divergences is not None
        nothing, *moved = data.divergences([{"policy": "dual_threshold"}, *routings])
    assert nothing == pytest.approx(0, abs=1e-9)
    assert moved == pytest.approx([data.divergence[layer][modality] for layer, modality in cases], rel=1e-4)
    assert min(moved) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--policy", "topk"), "There is nothing to calibrate for topk"),
        (("--policy", "gmm", "--skip", "0.5"), "--skip can't be used with --policy gmm."),
        (("--policy", "ltdr", "--routing", '{"policy": "gmm"}'), "name one policy"),
        (("--policy", "ltdr", "--routing", '{"threshold": 1}'), "Calibration decides threshold"),
        (("--policy", "ltdr", "--routing", '{"tail_experts": 9}'), "tail_experts is 9"),
        (("--policy", "ltdr", "--images", "/none"), "There is no folder /none"),
        (("--policy", "dual_threshold", "--skip", "1.5"), "--skip: Input should be less than 1"),
        (("--policy", "dual_threshold", "--skip", "0.5", "--skip-overall", "0.5"), "use either it or these"),
        (("--policy", "dual_threshold", "--routing", '{"top_k": 3}'), "at most 2 experts in layer 0"),
    ],
)
def test_impossible_settings_are_reported_before_anything_starts(
    options: tuple[str, ...], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["calibrate", str(PHI), str(tmp_path / "fitted"), *options]) == 1
    assert_one_sentence(capfd, message)
    assert list(tmp_path.iterdir()) == []
