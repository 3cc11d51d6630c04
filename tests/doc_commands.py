"""The shell commands of the pages, and of each the test that runs it or the reason why none does.

A key of the tables below stands for the commands that begin with it, but not with a longer key.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from tests.paths import REPOSITORY

TOP = ("CHANGELOG.md", "CONTRIBUTING.md", "README.md", "SECURITY.md")
PAGES = [*(REPOSITORY / name for name in TOP), *sorted((REPOSITORY / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.M | re.S)
COMMENT = re.compile(r"(?:^|\s+)# .*")

FROM_THE_PAGE = {
    ".venv/bin/python -m pytest tests/kernels/test_routing.py": "tests/test_doc_commands.py::test_one_test",
    "PICTURE=": "tests/server/test_examples.py::test_the_readmes_question_is_answered",
    "printf": "tests/server/test_examples.py::test_the_readmes_question_is_answered",
    "pip install /path/to/prismoe": "tests/test_wheel.py::test_pip_installs_it",
    "pip install prismoe-0.1.0-py3-none-any.whl": "tests/test_wheel.py::test_pip_installs_it",
    "curl -s localhost:8000/metrics": (
        "tests/server/plain_vllm/test_plain_vllm.py::test_nothing_of_prismoe_runs_unless_it_is_named"
    ),
    "prismoe calibrate Qwen/Qwen3-VL-30B-A3B-Instruct routing.json": (
        "tests/server/in_tree/test_calibrate.py::test_the_readmes_commands_calibrate_and_serve"
    ),
    "prismoe serve Qwen/Qwen3-VL-30B-A3B-Instruct --routing @routing.json": (
        "tests/server/in_tree/test_calibrate.py::test_the_readmes_commands_calibrate_and_serve"
    ),
    "prismoe calibrate MODEL DST": (
        "tests/server/commands/test_calibrate.py::test_each_command_of_the_page_fits_its_policy"
    ),
    "prismoe evaluate MODEL --routing": (
        "tests/server/commands/test_evaluate.py::test_a_model_of_vllms_own_is_counted_as_it_routes"
    ),
    "prismoe key": "tests/server/commands/test_cli.py::test_the_pages_commands_make_keys_of_each_role",
    "prismoe serve --api-keys-file keys.txt": (
        "tests/server/app/test_page_commands.py::test_a_server_with_the_pages_options"
    ),
    "prismoe serve --allowed-media-domains": (
        "tests/server/app/test_page_commands.py::test_a_server_with_the_pages_options"
    ),
    """prismoe serve MODEL --routing '{"policy": "ltdr",""": (
        "tests/server/app/test_page_commands.py::test_a_server_with_the_pages_options"
    ),
    """prismoe serve MODEL --routing '{"policy": "dual_threshold",""": (
        "tests/server/app/test_page_commands.py::test_the_pages_commands_switch_and_change_thresholds"
    ),
    "curl -X": "tests/server/app/test_page_commands.py::test_the_pages_commands_switch_and_change_thresholds",
    "prismoe serve MODEL --chat-template": (
        "tests/server/commands/test_tools.py::test_the_model_sees_the_same_prompt_on_all_routes"
    ),
    "vllm-router": "tests/server/plain_vllm/test_behind_a_router.py::test_the_counts_of_both_add_up",
    "deploy/key.sh": "tests/deploy/test_images.py::test_the_pages_commands_make_keys",
    "helm install": "tests/deploy/test_kubernetes.py::test_the_pages_settings_render",
}
"""Tests that take a command from the page and run it, on a small model where the page names a large one."""

IN_OTHER_WORDS = {
    "make demo": "tests/server/app/test_life.py::test_the_demo_shows_answers_and_load_and_ends_every_process",
    "make docs": "tests/test_site.py::test_each_page_of_the_docs_exists",
    "make load": "tests/server/test_loadtests.py::test_a_short_load_test_with_a_soak",
    "VLLM_PLUGINS=prismoe vllm serve Qwen/Qwen3-VL-30B-A3B-Instruct": (
        "tests/server/plain_vllm/test_plain_vllm.py::test_counts_are_in_vllms_own_metrics"
    ),
    "VLLM_PLUGINS=prismoe vllm serve MODEL": (
        "tests/server/plain_vllm/test_plain_vllm.py::test_two_api_servers_with_all_routes"
    ),
    "prismoe calibrate Qwen/Qwen3-VL-30B-A3B-Instruct skip.json": (
        "tests/server/in_tree/test_calibrate.py::test_thresholds_are_searched_for_a_share_of_all_uses"
    ),
    "prismoe serve MODEL --shadow": "tests/server/in_tree/test_glm4v_moe.py::test_the_uses_of_the_shadow",
    "cd deploy": "tests/deploy/test_stack.py::test_the_printed_line_is_answered",
    "docker compose --file compose.yaml --file cpu.yaml up": (
        "tests/deploy/test_stack.py::test_the_printed_line_is_answered"
    ),
}
"""Tests that do the same as a command, with their own model, numbers or changes."""

NOT_RUN = {
    "It is how the tests are run, or a part of that.": (
        "make install",
        "make format",
        "make lint",
        "make test",
    ),
    "It needs a GPU, or several.": (
        "cd deploy && docker compose",
        "docker compose up",
        "prismoe serve MODEL --tensor-parallel-size",
        """prismoe serve MODEL --routing '{"policy": "steer",""",
        "prismoe serve Qwen/Qwen3-VL-30B-A3B-Instruct --max-model-len",
        "prismoe serve Qwen/Qwen3-VL-30B-A3B-Instruct --routing '{",
        "prismoe serve Qwen/Qwen3-VL-235B-A22B-Instruct",
        "python -m prismoe.benchmarks",
        "VLLM_PLUGINS=prismoe vllm serve Qwen/Qwen3-VL-235B-A22B-Instruct",
        "VLLM_TUNED_CONFIG_FOLDER=tables prismoe serve",
    ),
    "It needs a network: a registry, PyPI or npm.": (
        "docker buildx",
        "OPENAI_API_KEY=none lmms/bin/python -m lmms_eval",
        "pip install vllm-router==",
        "prismoe evaluate model_plugins/checkpoints/prismoji",
        "prismoe serve &",
        "python -m prismoe.training.data.exam_files",
        "python -m prismoe.training.scores.measure",
        "python3 -m venv lmms",
    ),
    "It needs a cluster.": ("kubectl create", "ray start"),
    "It takes many minutes or hours.": (
        "B=model_plugins/checkpoints/prismoji",
        "HALVES=",
        "make compare",
        "prismoe calibrate $B",
        "python -m prismoe.training.comparison",
    ),
}


def commands_of(block: str) -> list[str]:
    """The commands of a block, each in one line and without its comment."""
    commands, begun = [], ""
    for line in block.replace("\\\n", " ").splitlines():
        begun = f"{begun}\n{COMMENT.sub('', line)}".strip()
        if begun and is_whole(begun):
            commands.append(re.sub(r"\s+", " ", begun))
            begun = ""
    assert not begun, f"This command has no end: {begun}"
    return commands


def is_whole(command: str) -> bool:
    """Whether its quotes are closed, and nothing is to follow."""
    try:
        return shlex.split(command)[-1] not in ("|", "&&")
    except ValueError:
        return False


def commands(*pages: Path) -> list[str]:
    """The commands of pages, each once."""
    blocks = [block for page in pages for block in BLOCK.findall(page.read_text())]
    return list(dict.fromkeys(command for block in blocks for command in commands_of(block)))


COMMANDS = commands(*PAGES)


KEYS = [*FROM_THE_PAGE, *IN_OTHER_WORDS, *(key for keys in NOT_RUN.values() for key in keys)]


def documented(key: str) -> list[str]:
    """The commands of all pages that a key of the tables stands for."""
    return [command for command in COMMANDS if key_of(command) == key]


def key_of(command: str) -> str | None:
    """The longest key that a command begins with."""
    return max((key for key in KEYS if command.startswith(key)), key=len, default=None)


def shell(script: str, folder: Path) -> str:
    """What a script prints that runs in this folder, with the commands of this environment."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = ["bash", "-euo", "pipefail", "-c", script]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
