"""The examples of docs/examples that need no engine and no server. Other tests run the others."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from prismoe.model_plugins.files.bundled import bundled_checkpoint
from prismoe.model_plugins.tools.evaluate.questions import Question
from prismoe.model_plugins.worker.settings import EngineSettings
from tests.examples import EXAMPLES
from tests.paths import REPOSITORY

LMMS_EVAL = EXAMPLES / "lmms_eval"
OF_PYTHON = {"__pycache__", ".ipynb_checkpoints"}


def test_the_index_names_each_example() -> None:
    named = set(re.findall(r"\]\(([\w.]+)\)", (EXAMPLES / "README.md").read_text()))
    assert named == {path.name for path in EXAMPLES.iterdir()} - {"README.md"} - OF_PYTHON


@pytest.mark.slow
def test_a_policy_in_its_own_package_is_installed_and_routes(tmp_path: Path) -> None:
    """The package's own test runs in the folder where pip installed it, not in the source."""
    package, installed = tmp_path / "package", tmp_path / "installed"
    shutil.copytree(EXAMPLES / "policy_package", package)
    run("pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "--target", installed, package)
    (package / "frugal_vision.py").unlink()
    test = package / "test_frugal_vision.py"
    path = os.pathsep.join([str(installed), str(REPOSITORY)])
    assert "1 passed" in run("pytest", "--rootdir", package, test, PYTHONPATH=path)


def run(module: str, *arguments: str | Path, **environment: str) -> str:
    """The output of a Python module as a command."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_task_of_lmms_eval_names_existing_functions() -> None:
    """lmms-eval is not installed here. docs/evaluation.md has its scores."""
    tagged: list[str] = []

    class Loader(yaml.SafeLoader):
        """Records the functions that lmms-eval would import."""

    Loader.add_constructor("!function", lambda _, node: tagged.append(str(node.value)))
    task = yaml.load((LMMS_EVAL / "prismoji_exam.yaml").read_text(), Loader)
    assert task["task"] == "prismoji_exam"
    functions = runpy.run_path(str(LMMS_EVAL / "answers.py"))
    assert tagged == ["answers.picture", "answers.results"]
    assert all(callable(functions[name.removeprefix("answers.")]) for name in tagged)
    [metric] = task["metric_list"]
    assert set(functions["results"]({"answer": "wine"}, ["wine"])) == {metric["metric"]}


@pytest.mark.parametrize("answer", ["maple leaf", " Maple leaf. ", "maple leaf .", "leaf", "maple leaf!", ""])
def test_the_task_of_lmms_eval_scores_like_evaluate(answer: str) -> None:
    functions = runpy.run_path(str(LMMS_EVAL / "answers.py"))
    is_right = Question(Path(), "", ("Maple leaf",)).is_right(answer)
    assert functions["results"]({"answer": "Maple leaf"}, [answer]) == {"right": is_right}


def test_the_task_of_lmms_eval_opens_the_picture_of_a_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "exam").symlink_to(bundled_checkpoint() / "pictures")
    monkeypatch.chdir(tmp_path)
    functions = runpy.run_path(str(LMMS_EVAL / "answers.py"))
    [picture] = functions["picture"]({"image": "wine.png"})
    assert picture.mode == "RGB" and picture.size[0] > 0


@pytest.mark.parametrize("file", ["production_stack.yaml", "llm_d.yaml"])
def test_the_values_enable_prismoe_with_valid_settings(file: str) -> None:
    """It was checked by hand that the charts accept the values: docs/plugin.md."""
    values = yaml.safe_load((EXAMPLES / file).read_text())
    if file == "llm_d.yaml":
        [container] = values["decode"]["containers"]
        image, arguments = container["image"], container["args"]
    else:
        [container] = values["servingEngineSpec"]["modelSpec"]
        image = f"{container['repository']}:{container['tag']}"
        arguments = container["vllmConfig"]["extraArgs"]
    assert container["env"] == [{"name": "VLLM_PLUGINS", "value": "prismoe"}]
    assert image == "registry.example/vllm-prismoe:v0.32.0"
    assert arguments[0] == "--additional-config"
    assert EngineSettings.of(json.loads(arguments[1])).expert_metrics == "full"
