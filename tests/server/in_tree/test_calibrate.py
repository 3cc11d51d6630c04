"""`prismoe calibrate` with a small vLLM model that has as many layers and experts as a large one."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
from vllm import SamplingParams

from prismoe.model_plugins.tools.calibrate.prompts import QUESTIONS
from prismoe.model_plugins.tools.chat_engine import chat_about
from prismoe.server.commands.cli import main
from tests.doc_commands import documented
from tests.model_plugins.engine import engine
from tests.model_plugins.in_tree import qwen3_vl_moe
from tests.model_plugins.in_tree.chats import picture
from tests.model_plugins.tools.check.test_check import assert_one_sentence, prismoe
from tests.server.in_tree.test_large import EXPERTS, LAYERS, MODEL, K
from tests.server.running import Server

pytestmark = pytest.mark.server

PICTURES = [picture(seed, width=64 + 32 * seed) for seed in range(4)]
ROUTING = {"head_experts": 4, "tail_experts": K, "text_experts": 6}
WAIT_S = 300
PRISMOE = (sys.executable, "-m", "prismoe.server.commands.cli")


class Calibrated(NamedTuple):
    """A run that was not interrupted."""

    checkpoint: Path
    images: Path
    file: Path
    settings: dict[str, Any]
    output: str
    progress: str


def command(checkpoint: Path, images: Path, file: Path) -> list[str]:
    return [
        *PRISMOE,
        *("calibrate", str(checkpoint), str(file), "--policy", "ltdr", "--routing", json.dumps(ROUTING)),
        *("--tail-share", "0.25", "--images", str(images), "--max-model-len", "512", "--dtype", "float32"),
    ]


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Calibrated:
    folder = tmp_path_factory.mktemp("calibrated")
    checkpoint, images, file = folder / "large", folder / "images", folder / "whole.json"
    MODEL.save(checkpoint)
    images.mkdir()
    for number, image in enumerate(PICTURES):
        image.save(images / f"{number}.png")
    done = subprocess.run(
        command(checkpoint, images, file), capture_output=True, text=True, timeout=WAIT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    assert sorted(entry.name for entry in folder.iterdir()) == ["images", "large", "whole.json"]
    return Calibrated(checkpoint, images, file, json.loads(file.read_text()), done.stdout, done.stderr)


def test_the_cost_is_reported(calibrated: Calibrated) -> None:
    assert re.match(
        r"4 prompts of about \d+ tokens .* each computed at most 5 times: about", calibrated.progress
    )
    memory = re.search(r"Peak memory over serving: ([\d.,]+) MiB of the host", calibrated.output)
    assert memory is not None
    assert float(memory[1].replace(",", "")) < 200


def test_settings_and_model(calibrated: Calibrated) -> None:
    settings = calibrated.settings
    assert settings["policy"] == "ltdr" and settings.items() >= ROUTING.items()
    assert [*settings["layers"]] == [str(layer) for layer in range(LAYERS)]
    model = settings["calibrated"]["model"]
    assert (model["layers"], model["experts"], model["top_k"]) == (LAYERS, EXPERTS, K)
    assert str(calibrated.checkpoint.parent) not in calibrated.file.read_text()


def test_a_run_that_was_killed_writes_the_same(calibrated: Calibrated, tmp_path: Path) -> None:
    file = tmp_path / "resumed.json"
    asked = command(calibrated.checkpoint, calibrated.images, file)
    with killed_at_the_end(asked):
        wait_for_answers(tmp_path / "resumed.json.recorded.npz", len(PICTURES) // 2)
    done = subprocess.run(asked, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"Pictures:[^\r]*\| [234]/4 \[00:00<", done.stderr)
    assert file.read_bytes() == calibrated.file.read_bytes()


@contextmanager
def killed_at_the_end(asked: list[str]) -> Iterator[None]:
    with subprocess.Popen(asked, start_new_session=True, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def wait_for_answers(state: Path, count: int) -> None:
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        if state.is_file():
            with np.load(state) as arrays:
                if len(arrays["answer_lengths"]) >= count:
                    return
        time.sleep(0.02)
    raise AssertionError(f"{state.name} holds no {count} answers after {WAIT_S} s.")


def test_a_server_skips_the_measured_experts(calibrated: Calibrated) -> None:
    measured = calibrated.settings["calibrated"]["measured"]
    with engine(calibrated.checkpoint, calibrated.settings, enable_prefix_caching=False) as llm:
        for image, question in zip(PICTURES, QUESTIONS, strict=True):
            llm.chat(chat_about(image, question), SamplingParams(temperature=0, max_tokens=1), use_tqdm=False)
        load = llm.collective_rpc("prismoe_expert_load")[0]
    uses_LM, tokens_LM = np.array(load["expert_tokens"]).sum(axis=2), np.array(load["tokens"])
    counted = dict(zip(load["modalities"], tokens_LM[0].tolist(), strict=True))
    assert counted == {"video": 0, **measured["tokens"]}
    for name, skipped in measured["skipped"].items():
        place = load["modalities"].index(name)
        assert skipped == (1 - uses_LM[:, place] / (K * tokens_LM[:, place])).tolist()
    assert set(measured["skipped"]["text"]) == {0.25}
    assert 0.3 < np.mean(measured["skipped"]["image"]) < 0.45


def test_thresholds_are_searched_for_a_share_of_all_uses(calibrated: Calibrated, tmp_path: Path) -> None:
    qwen3_vl_moe.MODEL.save(tmp_path / "small")
    file = tmp_path / "searched.json"
    options = ("--policy", "dual_threshold", "--skip-overall", "0.3", "--images", str(calibrated.images))
    done = subprocess.run(
        [*PRISMOE, "calibrate", str(tmp_path / "small"), str(file), *options, "--max-model-len", "512"],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"Thresholds:[^\r]*\| 4/4 ", done.stderr)
    settings = json.loads(file.read_text())
    text, vision = (
        [layer[f"{modality}_importance"] for layer in settings["layers"].values()]
        for modality in ("text", "vision")
    )
    assert sum(text) == pytest.approx(1) and min(text) > 0
    assert sum(vision) == pytest.approx(1) and min(vision[:-1]) > 0
    assert vision[-1] == 0  # nothing attends to the last layer's output for a picture
    measured = settings["calibrated"]["measured"]
    shares = [np.mean(skipped) for skipped in measured["skipped"].values()]
    skipped = np.average(shares, weights=[*measured["tokens"].values()])
    assert 0.27 < skipped < 0.36  # only prompts are measured; their answers were recorded, too
    assert measured["divergence"] > 0


def test_the_readmes_commands_calibrate_and_serve(calibrated: Calibrated, tmp_path: Path) -> None:
    model = replace(qwen3_vl_moe.MODEL, config=partial(qwen3_vl_moe.config, num_experts_per_tok=4))
    model.save(tmp_path / "small")
    [calibrate] = documented("prismoe calibrate Qwen/Qwen3-VL-30B-A3B-Instruct routing.json")
    [serve] = documented("prismoe serve Qwen/Qwen3-VL-30B-A3B-Instruct --routing @routing.json")
    names = {
        "Qwen/Qwen3-VL-30B-A3B-Instruct": str(tmp_path / "small"),
        "PICTURES": str(calibrated.images),
        "routing.json": str(tmp_path / "routing.json"),
        "@routing.json": f"@{tmp_path / 'routing.json'}",
    }
    asked, served = ([names.get(word, word) for word in command.split()] for command in (calibrate, serve))
    done = prismoe(*asked[1:], "--max-model-len", "512")
    assert done.returncode == 0, done.stderr
    server = Server(tmp_path / "log", *served[2:], "--max-model-len", "512")
    try:
        server.wait_until_ready()
        answer = httpx.get(f"{server.url}/v1/routing").raise_for_status().json()
        skipped = json.loads((tmp_path / "routing.json").read_text())["calibrated"]["measured"]["skipped"]
    finally:
        server.stop()
    assert {layer["policy"]["policy"] for layer in answer["layers"]} == {"dual_threshold"}
    assert 0.5 < np.mean(skipped["image"]) < 0.7


def test_another_model_is_not_served_with_it(calibrated: Calibrated, tmp_path: Path) -> None:
    """The other model has as many layers and experts, but different weights."""
    other = tmp_path / "other"
    replace(MODEL, seed=1).save(other)
    done = prismoe("serve", other, "--routing", f"@{calibrated.file}")
    assert done.returncode == 1
    message = done.stderr.splitlines()[-1]
    assert re.match(
        r"prismoe: The routing settings were calibrated for another model \(.*\) than this", message
    )
    assert "run prismoe calibrate on this checkpoint" in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--policy", "gmm"), "use ltdr, dual_threshold or entropy"),
        (("--policy", "equiroute"), "use ltdr, dual_threshold or entropy"),
        (("--policy", "entropy", "--images", "/none"), "There is no folder /none"),
    ],
)
def test_impossible_settings_are_reported_before_anything_starts(
    calibrated: Calibrated,
    options: tuple[str, ...],
    message: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert main(["calibrate", str(calibrated.checkpoint), str(tmp_path / "fitted.json"), *options]) == 1
    assert_one_sentence(capfd, message)
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_not_overwritten(calibrated: Calibrated, capfd: pytest.CaptureFixture[str]) -> None:
    asked = ["calibrate", str(calibrated.checkpoint), str(calibrated.file), "--policy", "entropy"]
    assert main(asked) == 1
    assert_one_sentence(capfd, "exists: name a file that is not there yet")
