"""Starts and ends: no process outlives the command, and impossible settings are refused with a message."""

import contextlib
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest

from tests.server.conftest import user
from tests.server.running import START_LIMIT_S, STOP_LIMIT_S, Command, Server

pytestmark = pytest.mark.server

NOISE = ("Traceback", "KeyboardInterrupt", "Exception ignored", "never retrieved", "leaked")


def wait_for(server: Server, reached: Callable[[], bool]) -> None:
    """Wait until a start has reached a stage."""
    end = time.monotonic() + START_LIMIT_S
    while not reached():
        assert server.watch() and time.monotonic() < end, server.output
        time.sleep(0.05)


def imports_torch(server: Server) -> bool:
    return "libtorch" in Path(f"/proc/{server.process.pid}/maps").read_text()


@pytest.mark.parametrize(
    ("moment", "method"),
    [
        (None, "fork"),
        ("Initializing a V1 LLM engine", "fork"),
        ("OpenMP thread binding info", "fork"),  # then the worker imports vLLM
        ("version 0.", "spawn"),  # then the engine does, as on a GPU
    ],
)
def test_ctrl_c_while_starting_ends_every_process_silently(
    tmp_path: Path, moment: str | None, method: str
) -> None:
    prefix = ("env", f"VLLM_WORKER_MULTIPROC_METHOD={method}")
    server = Server(tmp_path / "log", "--verbose", prefix=prefix)
    wait_for(server, lambda: imports_torch(server) if moment is None else moment in server.output)
    time.sleep(1)
    assert server.press_ctrl_c() == 130
    assert server.survivors() == []
    assert not [word for word in NOISE if word in server.output], server.output


@pytest.mark.parametrize("moment", [None, "Starting to load model"])
def test_sigterm_while_starting_ends_every_process_silently(tmp_path: Path, moment: str | None) -> None:
    server = Server(tmp_path / "log", "--verbose")
    wait_for(server, lambda: imports_torch(server) if moment is None else moment in server.output)
    assert server.stop(signal.SIGTERM) == 143
    assert server.survivors() == []
    assert not [word for word in NOISE if word in server.output], server.output


@pytest.mark.parametrize("level", ["INFO", "DEBUG"])
def test_a_life_without_faults_has_no_error_in_its_log(tmp_path: Path, level: str) -> None:
    server = Server(tmp_path / "log", prefix=("env", f"VLLM_LOGGING_LEVEL={level}"))
    try:
        server.wait_until_ready()
        body = {"model": "prismoji", "messages": user("Hello"), "max_tokens": 300, "ignore_eos": True}
        with httpx.stream(
            "POST", f"{server.url}/v1/chat/completions", json={**body, "stream": True}
        ) as answer:
            events = answer.iter_lines()
            next(events)
            server.watch()
            server.process.send_signal(signal.SIGTERM)
            assert [event for event in events if event][-1] == "data: [DONE]"
        assert server.wait(STOP_LIMIT_S) == 0
    finally:
        server.kill()
    levels = Counter(re.findall(r"\b(DEBUG|INFO|WARNING|ERROR|CRITICAL)\b", server.output))
    assert levels["INFO"] > 20 and (levels["DEBUG"] > 20) == (level == "DEBUG")
    assert levels["ERROR"] == levels["CRITICAL"] == 0, server.output
    assert not [word for word in NOISE if word in server.output], server.output


def test_a_start_logs_a_few_lines(server: Server) -> None:
    start, ready, _ = server.output.partition("Ready after ")
    assert ready and "Loading the model " in start and len(start.splitlines()) <= 15
    assert "the policy is ltdr (set by: checkpoint)" in start and "self-check at the start counted" in start
    assert f"s at {server.url}: " in server.output


def test_the_demo_shows_answers_and_load_and_ends_every_process(tmp_path: Path) -> None:
    demo = Command(tmp_path / "log", "demo", "--once")
    assert demo.wait() == 0, demo.output
    assert len(demo.family) >= 3
    assert demo.survivors() == []
    answers = re.findall(
        r"^    (?:What is this|Which category does it belong to)\? +(\S.*)$", demo.output, re.M
    )
    assert len(answers) == 6
    (share,) = re.findall(
        r"\((.*)%, over 2 MoE layers\) were tail tokens and used all 4 experts", demo.output
    )
    assert 5 <= float(share) <= 50


def test_the_demos_command_works_when_pasted(server: Server, picture_folder: Path) -> None:
    from prismoe.server.commands.demo import curl_line

    picture = shutil.copy(picture_folder / "ball.png", picture_folder / "it's a ball.png")
    line = curl_line(server.url, "prismoji", Path(picture), 'What is "this", 100%?')
    answer = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert '"role":"assistant"' in answer.stdout


def test_a_server_ends_with_the_tests_that_started_it(tmp_path: Path) -> None:
    starts = (
        "import os, signal, sys; from pathlib import Path; from tests.server.running import Server\n"
        "server = Server(Path(sys.argv[1]))\n"
        "while server.watch() and not server.family: pass\n"
        "print(server.process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    tests = subprocess.run([sys.executable, "-c", starts, str(tmp_path / "log")], capture_output=True)
    assert tests.returncode == -signal.SIGKILL
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(int(tests.stdout)).wait(STOP_LIMIT_S)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--routing", '{"policy": "nothing"}'), "routing"),
        (("--max-num-batched-tokens", "15"), "--max-num-batched-tokens 78 or more, with --max-num-seqs 15"),
        (("--limit-mm-per-prompt", '{"image": 0}'), "--limit-mm-per-prompt"),
    ],
)
def test_impossible_settings_are_refused_with_a_message(
    tmp_path: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    server = Server(tmp_path / "log", *arguments)
    assert server.wait() == 1
    assert server.survivors() == []
    last = server.output.rstrip().splitlines()[-1]
    assert last.startswith("prismoe: ") and sentence in last, last
    assert "Traceback" not in server.output


def test_a_port_in_use_is_refused_with_a_message(server: Server, tmp_path: Path) -> None:
    port = server.url.rpartition(":")[2]
    second = Command(tmp_path / "log", "serve", "--host", "127.0.0.1", "--port", port)
    assert second.wait() == 1
    assert second.output.rstrip().splitlines()[-1].startswith(f"prismoe: Can't listen on port {port}: ")
