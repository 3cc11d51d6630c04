"""The command `prismoe check` with the authors' reference, changed references, and wrong arguments."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from prismoe.server.commands.cli import main
from tests.model_plugins.engine import PHI
from tests.model_plugins.tiny_checkpoints import make_checkpoint

REFERENCE = PHI / "reference_deterministic.npz"


def prismoe(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "prismoe.server.commands.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.engine
def test_the_authors_reference_as_json() -> None:
    done = prismoe("check", PHI, "--against", REFERENCE, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert done.stderr == ""
    assert report["passed"] is True
    assert report["family"] == "Phi-2"
    assert report["experts"] == {"by_layer": {"0": 4, "2": 4}, "top_k": 2, "residual": False}
    assert report["tower"]["tokens_per_image"] == 16
    assert report["routing"]["source"] == "default"
    assert [layer["layer"] for layer in report["routing"]["layers"]] == [0, 2]
    assert report["weights"]["parameters"] == 350432
    assert len(report["unused_tensors"]) == 18
    assert all(".layers.2." in name or "post_layernorm" in name for name in report["unused_tensors"])
    comparisons = {entry["array"]: entry for entry in report["reference"]["comparisons"]}
    assert comparisons["layer2_router_logits"]["tolerance"] == 1e-4
    assert comparisons["greedy_ids"] == {
        **{"array": "greedy_ids", "difference": 0, "tolerance": 0, "at": None, "count": 12},
        **{"ties": [], "within": True},
    }
    assert 0 < comparisons["logits"]["difference"] < 1e-4
    assert comparisons["text_logits"]["within"]


@pytest.mark.engine
def test_a_changed_reference_exits_1_and_is_named(tmp_path: Path) -> None:
    arrays = dict(np.load(REFERENCE))
    arrays["layer0_router_logits"][20, 1] += 0.01
    arrays["logits"][0, 40, 100] -= 0.01
    chosen = arrays["layer2_topk_ids"][33]
    chosen[1] = next(expert for expert in range(4) if expert not in chosen)
    np.savez(tmp_path / "altered.npz", **arrays)
    done = prismoe("check", PHI, "--against", tmp_path / "altered.npz")
    assert done.returncode == 1
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
    broken = {name for name, line in lines.items() if "BROKEN" in line}
    assert broken == {"layer0_router_logits", "logits", "layer2_topk_ids"}
    assert lines["layer0_router_logits"].split()[1:3] == ["1.0e-02", "1e-04"]
    assert lines["layer0_router_logits"].endswith("BROKEN at [20, 1]")
    assert lines["logits"].endswith("BROKEN at [40, 100]")
    assert lines["layer2_topk_ids"].split()[1:4] == ["1", "of", "58"]
    assert "Beyond tolerance: logits, layer0_router_logits, layer2_topk_ids" in done.stdout


def test_a_folder_that_is_not_a_checkpoint_is_refused_with_a_message(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"model_type": ')
    for folder, complaint in (
        ("missing", "is neither a folder nor a name on the Hugging Face Hub"),
        ("empty", "holds no config.json"),
        (".", "holds no config.json"),
        ("llama", "config.json gives the model_type 'llama'; prismoe serves"),
        ("broken", "is not JSON"),
    ):
        assert main(["check", str(tmp_path / folder)]) == 1
        assert_one_sentence(capfd, complaint)


def test_an_incomplete_checkpoint_is_refused_with_a_message(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    checkpoint = make_checkpoint(tmp_path, "phi")
    weights = checkpoint / "model.safetensors"
    whole = weights.read_bytes()
    for content, complaint in (
        (whole[:-100], "is cut short"),
        (whole[:100], "is cut short"),
        (b"", "is cut"),
    ):
        weights.write_bytes(content)
        assert main(["check", str(checkpoint)]) == 1
        assert_one_sentence(capfd, complaint)
    weights.unlink()
    assert main(["check", str(checkpoint)]) == 1
    assert_one_sentence(capfd, "holds no weights")
    weights.write_bytes(whole)
    (tmp_path / "towers" / "clip" / "config.json").unlink()
    assert main(["check", str(checkpoint)]) == 1
    assert_one_sentence(capfd, "image tower 'towers/clip' was not found")


def test_a_reference_that_does_not_fit_is_refused_before_the_engine_starts(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "stock.npz", stock_last_logits_16seeds=np.zeros((16, 512)))
    assert main(["check", str(PHI), "--against", str(tmp_path / "stock.npz")]) == 1
    assert_one_sentence(capfd, "holds no input_ids")


def assert_one_sentence(capfd: pytest.CaptureFixture[str], complaint: str) -> None:
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("prismoe: ") and complaint in captured.err
    assert len(captured.err.splitlines()) == 1
