"""setup.sh, which compose runs first, in a temporary folder. test_stack.py runs it in a container."""

import hashlib
import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from prismoe.server.access.keys import KeyFile
from tests.deploy.conftest import DEPLOY

SETTINGS = {
    "DEVICE": "cpu",
    "COMPOSE": "docker compose",
    "IP_ADDRESS": "127.0.0.1",
    "SERVER_PORT": "8000",
    "MODEL": "",
    "CHECKPOINTS": "/data/models",
    "GPUS": "1",
    "RETENTION": "30d",
}
PROPRIETARY = """\
NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}.65.06  Sun Jul 27 06:12:57 UTC 2025
GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)
"""
OPEN = """\
NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {}.65.06  Release Build  (b@host)  Jul 27 2025
GCC version:
"""
WSL = "Linux version 5.15.167.4-microsoft-standard-WSL2"


@dataclass
class Root:
    """The root of setup.sh's file system."""

    folder: Path

    def setup(self, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        environment = SETTINGS | settings | {"ROOT": str(self.folder), "PATH": "/usr/bin:/bin"}
        command = ["sh", str(DEPLOY / "setup.sh"), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)

    def read(self, name: str) -> str:
        return (self.folder / "run" / "prismoe" / name).read_text()

    def opens(self, key: str) -> tuple[str, str] | None:
        """The name and the role of a key."""
        found = KeyFile(self.folder / "run" / "prismoe" / "server" / "api_keys").find(key)
        return None if found is None else (found.name, found.role.value)

    def driver(self, text: str) -> None:
        file = self.folder / "proc" / "driver" / "nvidia" / "version"
        file.parent.mkdir(parents=True)
        file.write_text(text)


@pytest.fixture
def root(tmp_path: Path) -> Root:
    for name in ("server", "prometheus", "grafana"):
        (tmp_path / "run" / "prismoe" / name).mkdir(parents=True)
    for name in ("checkpoints/whole", "checkpoints/owner/whole", "checkpoints/empty", "proc"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("whole", "owner/whole"):
        (tmp_path / "checkpoints" / name / "config.json").touch()
    (tmp_path / "proc" / "version").write_text(
        "Linux version 6.1.0-37-amd64 (debian-kernel@lists.debian.org)"
    )
    (tmp_path / "key.sh").write_bytes((DEPLOY / "key.sh").read_bytes())
    return Root(tmp_path)


def bearer(text: str) -> str:
    [key] = re.findall(r"Bearer (\w+)", text)
    return str(key)


def test_the_first_run_makes_keys_and_a_password(root: Root) -> None:
    done = root.setup()
    assert (done.returncode, done.stderr) == (0, "")
    assert root.opens(bearer(done.stdout)) == ("client", "client")
    assert root.opens(root.read("prometheus/metrics_key").strip()) == ("prometheus", "metrics")
    assert re.fullmatch(r"[0-9a-f]{32}", root.read("grafana/password"))
    for secret in (root.read("prometheus/metrics_key").strip(), root.read("grafana/password")):
        assert secret not in done.stdout
    [line] = [line for line in done.stdout.splitlines() if bearer(done.stdout) in line]
    assert line.startswith("printf ") and "curl -s http://127.0.0.1:8000/v1/chat/completions" in line


def test_the_printed_line_sends_a_picture(root: Root, tmp_path: Path) -> None:
    [line] = [
        line
        for line in root.setup(IP_ADDRESS="192.0.2.1", SERVER_PORT="80").stdout.splitlines()
        if "curl" in line
    ]
    curl = tmp_path / "curl"
    curl.write_text('#!/bin/sh\necho "$@" >&2\ncat\n')
    curl.chmod(0o755)
    path = f"{tmp_path}:/usr/bin:/bin"
    done = subprocess.run(["sh", "-c", line], cwd=DEPLOY, env={"PATH": path}, capture_output=True, text=True)
    [message] = json.loads(done.stdout)["messages"]
    assert message["content"][0]["image_url"]["url"].startswith("data:image/png;base64,iVBORw0KGgo")
    assert "http://192.0.2.1:80/v1/chat/completions" in done.stderr


@pytest.mark.parametrize(
    ("address", "host"),
    [("0.0.0.0", "localhost"), ("::", "localhost"), ("::1", "[::1]"), ("10.0.0.7", "10.0.0.7")],
)
def test_the_printed_line_has_an_address_of_this_host(root: Root, address: str, host: str) -> None:
    assert f" http://{host}:8000/v1/chat" in root.setup(IP_ADDRESS=address).stdout


def test_later_runs_keep_existing_secrets(root: Root) -> None:
    root.setup()
    names = ("server/api_keys", "prometheus/metrics_key", "grafana/password")
    made = [root.read(name) for name in names]
    done = root.setup()
    assert done.returncode == 0 and "docker compose run --rm setup key" in done.stdout
    assert "Bearer" not in done.stdout
    assert [root.read(name) for name in names] == made


@pytest.mark.parametrize("lost", ["server/api_keys", "prometheus/metrics_key", "grafana/password"])
def test_lost_secrets_are_made_again(root: Root, lost: str) -> None:
    first = bearer(root.setup().stdout)
    (root.folder / "run" / "prismoe" / lost).unlink()
    sentence = root.setup().stdout
    key = bearer(sentence) if lost == "server/api_keys" else first
    assert root.opens(key) == ("client", "client")
    assert root.opens(root.read("prometheus/metrics_key").strip()) == ("prometheus", "metrics")
    assert root.read("grafana/password")


def test_a_key_is_replaced_added_and_removed(root: Root) -> None:
    first = bearer(root.setup().stdout)
    second, bobs = (root.setup(*words).stdout.strip() for words in (["key"], ["key", "bob"]))
    assert (root.opens(first), root.opens(second)) == (None, ("client", "client"))
    assert root.opens(bobs) == ("bob", "client")
    assert root.setup("remove", "client").returncode == 0
    assert (root.opens(second), root.opens(bobs)) == (None, ("bob", "client"))
    assert "Bearer" not in root.setup().stdout, "Bob has a key, so that no first client needs one."
    assert hashlib.sha256(bobs.encode()).hexdigest() in root.read("server/api_keys")


def test_prometheus_gets_a_new_key(root: Root) -> None:
    root.setup()
    old = root.read("prometheus/metrics_key").strip()
    done = root.setup("key", "prometheus")
    assert (done.returncode, done.stdout) == (0, "")
    assert root.opens(old) is None
    assert root.opens(root.read("prometheus/metrics_key").strip()) == ("prometheus", "metrics")


@pytest.mark.parametrize(
    "words", [["remove"], ["keys"], ["key", "bob", "metrics"], ["key", "a b"], ["key", ""]]
)
def test_unknown_arguments_are_refused_and_change_nothing(root: Root, words: list[str]) -> None:
    root.setup()
    before = root.read("server/api_keys")
    done = root.setup(*words)
    assert done.returncode != 0 and len(done.stderr.splitlines()) == 1
    assert root.read("server/api_keys") == before


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"MODEL": "/data/whole"}, "MODEL=/data/whole is not a name"),
        ({"MODEL": "~/whole"}, "MODEL=~/whole is not a name"),
        ({"MODEL": "./whole"}, "MODEL=./whole is not a name"),
        ({"MODEL": "owner/../whole"}, "MODEL=owner/../whole is not a name"),
        ({"MODEL": "whole/"}, "MODEL=whole/ is not a name"),
        ({"MODEL": "two words"}, "MODEL=two words is not a name"),
        (
            {"MODEL": "gone"},
            "MODEL=gone is neither a folder in CHECKPOINTS=/data/models nor a name on the Hugging",
        ),
        ({"MODEL": "a/b/c"}, "MODEL=a/b/c is neither"),
        (
            {"MODEL": "empty"},
            "MODEL=empty: the folder of that name in CHECKPOINTS=/data/models has no config.json",
        ),
        ({"GPUS": "0"}, "GPUS=0 is not a number of GPUs"),
        ({"GPUS": "-1"}, "GPUS=-1 is not a number of GPUs"),
        ({"GPUS": "all"}, "GPUS=all is not a number of GPUs"),
        ({"RETENTION": "long"}, "RETENTION=long is not a time"),
        ({"RETENTION": "30"}, "RETENTION=30 is not a time"),
    ],
)
def test_a_wrong_setting_is_reported_and_nothing_is_made(
    root: Root, settings: dict[str, str], complaint: str
) -> None:
    done = root.setup(**settings)
    assert done.returncode == 1 and complaint in done.stderr
    assert not list((root.folder / "run").rglob("*key*"))


@pytest.mark.parametrize("model", ["", "whole", "owner/whole", "LanguageBind/MoE-LLaVA-Phi2-2.7B-4e"])
@pytest.mark.parametrize("retention", ["30d", "1d12h"])
def test_a_right_setting_is_accepted(root: Root, model: str, retention: str) -> None:
    assert root.setup(MODEL=model, RETENTION=retention, GPUS="16").returncode == 0


def test_a_host_without_a_driver_gets_instructions(root: Root) -> None:
    done = root.setup(DEVICE="gpu")
    assert done.returncode == 1
    assert "no NVIDIA GPU, or its driver is not loaded" in done.stderr
    assert "580" in done.stderr and "--file cpu.yaml" in done.stderr


@pytest.mark.parametrize(
    ("text", "release", "old"), [(PROPRIETARY, 570, True), (OPEN, 579, True), (OPEN, 580, False)]
)
def test_an_old_driver_is_reported(root: Root, text: str, release: int, old: bool) -> None:
    root.driver(text.format(release))
    done = root.setup(DEVICE="gpu")
    assert done.returncode == 0 and "Container Toolkit" in done.stdout
    assert ("older than 580" in done.stdout) == old


def test_the_driver_of_wsl_is_not_checked(root: Root) -> None:
    (root.folder / "proc" / "version").write_text(WSL)
    assert root.setup(DEVICE="gpu").returncode == 0
