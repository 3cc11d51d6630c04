"""A Docker engine for the tests: the running one or, under continuous integration, Debian's."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

COMPOSE = Path(sys.executable).with_name("docker-compose")
UNDER_CI = os.environ.get("CI", "").lower() in ("1", "true")
MAY_INSTALL = UNDER_CI and os.geteuid() == 0 and shutil.which("apt-get") is not None


def docker(*arguments: str | Path, limit_s: float = 120, check: bool = True) -> str:
    """The output of a docker command, without the last newline."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=limit_s)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done.stdout.rstrip("\n")


def inspect(name: str) -> dict[str, Any]:
    """Docker's description of a container or image."""
    found: dict[str, Any] = json.loads(docker("inspect", name))[0]
    return found


def has_image(name: str) -> bool:
    """Whether an image exists or can be pulled."""
    for command in (["image", "inspect", name], ["pull", "--quiet", name]):
        try:
            docker(*command, limit_s=300)
        except (AssertionError, subprocess.TimeoutExpired):
            continue
        return True
    return False


@contextmanager
def engine() -> Iterator[None]:
    """A running Docker engine. The test is skipped if there is none and none can be installed."""
    if _answers():
        yield
        return
    if not UNDER_CI:
        pytest.skip("No Docker engine answers `docker info`. Start one (Debian: apt-get install docker.io).")
    if shutil.which("dockerd") is None:
        install(["docker.io"])
    with _daemon():
        yield


def install(packages: Sequence[str]) -> None:
    """Install Debian's packages if that is allowed."""
    if not MAY_INSTALL:
        text = f"This needs Debian's {' and '.join(packages)}, which root installs where CI is true."
        (pytest.fail if UNDER_CI else pytest.skip)(text)
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    apt = ["apt-get", "--quiet=2"]
    subprocess.run([*apt, "update"], check=True, timeout=300)
    command = [*apt, "install", "--no-install-recommends", *packages]
    subprocess.run(command, check=True, timeout=600, env=environment)


@contextmanager
def _daemon() -> Iterator[None]:
    """Run the engine until the tests end. Its built images stay."""
    log = Path("/var/log/dockerd-of-tests.log")
    with log.open("w") as output:
        process = subprocess.Popen(["dockerd"], stdout=output, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + 120
        while not _answers():
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.5)
        yield
    finally:
        process.terminate()
        process.wait(60)


def _answers() -> bool:
    if shutil.which("docker") is None:
        return False
    done = subprocess.run(["docker", "info"], capture_output=True, text=True, timeout=60)
    return done.returncode == 0
