"""Builds Dockerfile.cpu, and runs compose.yaml's CPU form in a real Docker engine.

make test ARGS=tests/deploy/test_stack.py

The tests share the running containers, and each continues from the state that the previous one left. If no
image can be pulled, others replace them (stand_ins.py). Built images stay in Docker's layer cache.
"""

import json
import os
import re
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import yaml

from prismoe.benchmarks.monitoring.prometheus import RULES
from prismoe.loadtests.local_server import free_port
from tests.deploy.conftest import DEPLOY
from tests.deploy.docker_engine import COMPOSE, docker, engine, inspect
from tests.deploy.stand_ins import in_their_place, torch_index
from tests.network import network
from tests.paths import REPOSITORY

pytestmark = [pytest.mark.docker, pytest.mark.timeout(3000)]

PROJECT = "prismoe-test"
IMAGE = "prismoe-test:cpu"
WORK = REPOSITORY / ".cache" / "stack"
LASTING = ("server", "prometheus", "grafana")
GIB = 2**30

SIGNAL_THE_SERVER = """
import os, pathlib, signal, sys
for process in pathlib.Path("/proc").glob("[0-9]*"):
    parent = (process / "stat").read_text().rsplit(")", 1)[1].split()[1]
    if parent == "1" and b"serve" in (process / "cmdline").read_bytes():
        os.kill(int(process.name), signal.Signals[sys.argv[1]])
"""


@dataclass
class Stack:
    """The project's containers."""

    settings: dict[str, str]
    changes: Path
    form: tuple[str, ...] = ("compose.yaml", "cpu.yaml")

    def compose(self, *arguments: str, limit_s: float = 300, check: bool = True) -> str:
        """The output of Compose for these arguments."""
        files = [word for file in (*self.form, str(self.changes)) for word in ("--file", file)]
        command = [str(COMPOSE), "--env-file", "/dev/null", "--project-name", PROJECT, *files, *arguments]
        done = subprocess.run(
            command,
            cwd=DEPLOY,
            env=os.environ | self.settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=limit_s,
        )
        if check and done.returncode != 0:
            logs = self.compose("logs", "--tail", "50", check=False)
            pytest.fail(f"{' '.join(arguments)} ended with {done.returncode}.\n{done.stdout}\n{logs}")
        return done.stdout

    def state(self, service: str) -> dict[str, Any]:
        """Docker's description of a service's container."""
        return inspect(f"{PROJECT}-{service}-1")

    def inside(self, service: str, *command: str, check: bool = True) -> str:
        """The output of a command in a service's container."""
        return docker("exec", f"{PROJECT}-{service}-1", *command, check=check)

    def signal_the_server(self, name: str) -> None:
        """Send a signal to the server's process, which is not the first in its container."""
        self.inside("server", "python", "-c", SIGNAL_THE_SERVER, name)

    def get(self, path: str, key: str | None, port: str = "SERVER_PORT") -> tuple[int, str]:
        """The status and body of an answer."""
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        url = f"http://127.0.0.1:{self.settings[port]}{path}"
        answer = httpx.get(url, headers=headers, timeout=30)
        return answer.status_code, answer.text

    def query(self, expr: str) -> list[float]:
        """The current values of a query in Prometheus."""
        _, body = self.get(f"/api/v1/query?query={quote(expr)}", None, "PROMETHEUS_PORT")
        return [float(sample["value"][1]) for sample in json.loads(body)["data"]["result"]]

    def healthy_again(self) -> None:
        """Wait until the server is healthy."""
        wait(lambda: self.state("server")["State"].get("Health", {}).get("Status") == "healthy", 180)

    @property
    def first_line(self) -> str:
        """The line with the client's key that the first run printed."""
        [line] = [
            line for line in self.compose("logs", "--no-log-prefix", "setup").splitlines() if "curl" in line
        ]
        return line

    @property
    def key(self) -> str:
        """The client's key."""
        found = re.search(r"Bearer (\w+)", self.first_line)
        assert found
        return found[1]


def wait(true: Callable[[], bool], limit_s: float) -> None:
    end = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < end, "It did not come true in time."
        time.sleep(0.5)


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """The containers, after the single command."""
    WORK.mkdir(parents=True, exist_ok=True)
    token = WORK / "hf_token"  # the folder that the image is built from
    token.write_text(f"hf_{secrets.token_hex(16)}")
    settings = {name: str(free_port()) for name in ("SERVER_PORT", "PROMETHEUS_PORT", "GRAFANA_PORT")}
    settings |= {"HF_TOKEN_FILE": str(token), "MEMORY": "6g"}
    with network(changes=True), engine():
        changes = changes_for_the_test()
        (WORK / "changes.json").write_text(json.dumps({"services": changes}))
        stack = Stack(settings, WORK / "changes.json")
        stack.compose("down", "--volumes", check=False)
        try:
            with (
                torch_index(WORK / "index", torch_build()) if "build" in changes["server"] else nullcontext()
            ):
                stack.compose("up", "--build", "--detach", "--wait", limit_s=1500)
            yield stack
        finally:
            stack.compose("down", "--volumes", check=False)


def changes_for_the_test() -> dict[str, Any]:
    """The override with names for the test, and available images."""
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    base = re.search(r"^ARG BASE=(\S+)$", (DEPLOY / "Dockerfile.cpu").read_text(), re.MULTILINE)
    assert base
    changes = in_their_place(base[1], services["prometheus"]["image"], services["grafana"]["image"])
    for name in ("setup", "server"):
        changes[name] = changes.get(name, {}) | {"image": IMAGE}
    return changes


def torch_build() -> str:
    found = re.search(r"^(torch==\S+) ", (DEPLOY / "requirements-cpu.lock").read_text(), re.MULTILINE)
    assert found
    return found[1]


def answer(stack: Stack, line: str) -> str:
    """The model's answer to the first run's line."""
    done = subprocess.run(["sh", "-c", line], cwd=DEPLOY, capture_output=True, text=True, timeout=120)
    return str(json.loads(done.stdout)["choices"][0]["message"]["content"]).strip()


def test_one_command_starts_everything_healthy(stack: Stack) -> None:
    for service in LASTING:
        assert stack.state(service)["State"]["Health"]["Status"] == "healthy", service
    assert (stack.state("setup")["State"]["Status"], stack.state("setup")["State"]["ExitCode"]) == (
        "exited",
        0,
    )


def test_ports_are_open_only_on_this_host(stack: Stack) -> None:
    for service in LASTING:
        [bound] = stack.state(service)["NetworkSettings"]["Ports"].values()
        assert [place["HostIp"] for place in bound] == ["127.0.0.1"], service


def test_the_printed_line_is_answered(stack: Stack) -> None:
    assert answer(stack, stack.first_line) == "maple leaf"


def test_a_request_without_the_key_is_refused(stack: Stack) -> None:
    assert stack.get("/v1/models", None)[0] == 401
    assert stack.get("/v1/models", "0" * 64)[0] == 401
    assert stack.get("/metrics", stack.key)[0] == 403, "a client's key opens no metrics"
    assert stack.get("/v1/models", stack.key)[0] == 200


def test_prometheus_has_the_server_the_rules_and_the_series(stack: Stack) -> None:
    wait(lambda: stack.query('up{job="prismoe"}') == [1], 60)
    wait(lambda: sum(stack.query('prismoe_tokens_total{modality="image"}')) > 0, 60)
    loaded = json.loads(stack.get("/api/v1/rules", None, "PROMETHEUS_PORT")[1])["data"]["groups"]
    written = yaml.safe_load(RULES.read_text())["groups"]
    in_groups = [{group["name"]: len(group["rules"]) for group in groups} for groups in (loaded, written)]
    assert in_groups[0] == in_groups[1]
    wait(lambda: len(stack.query("prismoe:experts_per_token:ratio_rate5m")) > 0, 60)


@pytest.mark.parametrize(
    ("service", "user", "memory"),
    [("server", "2000:0", 6), ("prometheus", "65534:", 1), ("grafana", "472:0", 1)],
)
def test_a_container_is_confined(stack: Stack, service: str, user: str, memory: int) -> None:
    """Checks this from inside, and in Docker's description."""
    found = stack.inside(service, "sh", "-c", "echo $(id -u):$(id -g); grep -E 'Cap|NoNew' /proc/self/status")
    who, *lines = found.splitlines()
    assert who.startswith(user)
    status = {name.rstrip(":"): int(value, 16) for name, value in map(str.split, lines)}
    assert status.pop("NoNewPrivs") == 1
    assert set(status) == {"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} and not any(status.values())
    mounted = [line.split() for line in stack.inside(service, "cat", "/proc/mounts").splitlines()]
    flags = {place: options.split(",")[0] for _, place, _, options, *_ in mounted}
    assert flags["/"] == flags["/run/prismoe"] == "ro"
    limit = "cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes"
    assert int(stack.inside(service, "sh", "-c", limit)) == memory * GIB
    host = stack.state(service)["HostConfig"]
    assert not host["Privileged"] and host["CapDrop"] == ["ALL"] and not host["CapAdd"]


def test_no_secret_leaks(stack: Stack) -> None:
    known = {
        "client": stack.key,
        "metrics": stack.inside("prometheus", "cat", "/run/prismoe/metrics_key"),
        "password": stack.inside("grafana", "cat", "/run/prismoe/password"),
        "token": stack.inside("server", "cat", "/run/secrets/hf_token"),
    }
    assert len(set(known.values())) == 4 and all(len(secret) >= 32 for secret in known.values())
    logs = stack.compose("logs")
    assert {name: logs.count(secret) for name, secret in known.items()} == {
        "client": 1,
        "metrics": 0,
        "password": 0,
        "token": 0,
    }
    containers = [f"{PROJECT}-{service}-1" for service in ("setup", *LASTING)]
    reported = docker("inspect", IMAGE, *containers) + docker("history", "--no-trunc", IMAGE)
    assert not [name for name, secret in known.items() if secret in reported]
    # The server has only digests, and cannot see other services' secrets.
    seen = stack.inside("server", "sh", "-c", "cat /run/prismoe/*; env")
    assert not [name for name in ("client", "metrics", "password", "token") if known[name] in seen]
    # Except for the lock's packages, whose files are known by their hashes.
    search = f"""
        grep -rlF {" ".join(f"-e {secret}" for secret in known.values())} \\
            --exclude-dir=proc --exclude-dir=sys --exclude-dir=site-packages \\
            / /opt/prismoe/lib/python3*/site-packages/prismoe
        echo searched
    """
    alone = ("run", "--rm", "--network", "none", "--user", "0", "--entrypoint", "sh")
    assert docker(*alone, IMAGE, "-c", search, limit_s=300) == "searched"


def test_the_health_check_fails_if_the_server_does_not_answer(stack: Stack) -> None:
    kind, *check = stack.state("server")["Config"]["Healthcheck"]["Test"]
    assert kind == "CMD"
    stack.inside("server", *check)
    stack.signal_the_server("SIGSTOP")
    try:
        with pytest.raises((AssertionError, subprocess.TimeoutExpired)):
            stack.inside("server", "timeout", "5", *check)
    finally:
        stack.signal_the_server("SIGCONT")


def test_a_lost_key_is_replaced(stack: Stack) -> None:
    old = stack.key
    new = stack.compose("run", "--rm", "--no-deps", "setup", "key").splitlines()[-1]
    assert (stack.get("/v1/models", new)[0], stack.get("/v1/models", old)[0]) == (200, 401)
    bob = stack.compose("run", "--rm", "--no-deps", "setup", "key", "bob").splitlines()[-1]
    assert stack.get("/v1/models", bob)[0] == 200 == stack.get("/v1/models", new)[0]
    stack.compose("run", "--rm", "--no-deps", "setup", "remove", "bob")
    assert (stack.get("/v1/models", bob)[0], stack.get("/v1/models", new)[0]) == (401, 200)
    assert new not in stack.compose("logs")
    stack.settings["KEY"] = new


def test_a_killed_server_comes_back(stack: Stack) -> None:
    stack.signal_the_server("SIGKILL")
    wait(lambda: stack.state("server")["RestartCount"] == 1, 60)
    stack.healthy_again()
    assert stack.get("/v1/models", stack.settings["KEY"])[0] == 200


def test_stop_ends_all_containers_cleanly(stack: Stack) -> None:
    stack.inside("server", "touch", "/home/vllm/kept")
    stack.compose("stop")
    for service in LASTING[:2]:
        state = stack.state(service)["State"]
        assert (state["ExitCode"], state["OOMKilled"]) == (0, False), service


def test_secrets_and_removed_keys_survive_new_containers(stack: Stack) -> None:
    """No key is made again, not even a removed one."""
    stack.compose("down")
    assert "curl" not in stack.compose("up", "--no-build", "--detach", "--wait")
    assert "curl" not in stack.compose("logs", "setup")
    assert stack.get("/v1/models", stack.settings["KEY"])[0] == 200
    stack.inside("server", "ls", "/home/vllm/kept")
    stack.inside("grafana", "ls", "/var/lib/grafana/grafana.db")
    assert stack.query('count_over_time(up{job="prismoe"}[1h] offset 1m)'), "Prometheus has lost what it had."


def test_restart(stack: Stack) -> None:
    stack.compose("restart")
    stack.healthy_again()
    assert stack.get("/v1/models", stack.settings["KEY"])[0] == 200


def test_the_gpu_form_reports_a_missing_gpu(stack: Stack) -> None:
    if Path("/proc/driver/nvidia/version").exists():
        pytest.skip("This host has an NVIDIA driver.")
    stack.compose("down")
    changes = WORK / "gpu-changes.json"
    changes.write_text(json.dumps({"services": {**json.loads(stack.changes.read_text())["services"]}}))
    gpu = Stack(stack.settings, changes, ("compose.yaml",))
    message = gpu.compose("up", "--no-build", check=False)
    assert "This host has no NVIDIA GPU, or its driver is not loaded." in message
    assert "docker compose --file compose.yaml --file cpu.yaml up" in message
    assert (gpu.state("setup")["State"]["ExitCode"], gpu.state("setup")["RestartCount"]) == (1, 0)
    assert gpu.state("server")["State"]["Status"] == "created", "It was not started."
