"""Compose's interpretation of compose.yaml, and Helm's rendering of the chart, for the tests."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from helm_python import Chart

from tests.paths import REPOSITORY
from tests.project import PROJECT

DEPLOY = REPOSITORY / "deploy"
CHART = DEPLOY / "kubernetes"

REQUIRED = {
    "image": f"registry.example/prismoe:{PROJECT['version']}-cuda",
    "checkpointsClaim": "checkpoints",
    "model": "MoE-LLaVA-Phi2-2.7B-4e",
    "apiKeySecret": "prismoe",
}

Compose = Callable[..., subprocess.CompletedProcess[str]]
Manifests = dict[tuple[str, str], dict[str, Any]]


@pytest.fixture
def compose(tmp_path: Path) -> Compose:
    """Run `docker compose config` on compose.yaml with these settings in .env.

    `cpu` adds cpu.yaml, and `alerts` adds alertmanager.yaml. Without settings there is no .env, and without a
    text for it no server.env.
    """
    folder = tmp_path / "deploy"
    folder.mkdir()
    for name in ("compose.yaml", "cpu.yaml", "alertmanager.yaml"):
        shutil.copyfile(DEPLOY / name, folder / name)

    def config(
        cpu: bool = False, server_env: str = "", alerts: bool = False, **settings: str
    ) -> subprocess.CompletedProcess[str]:
        if settings:
            (folder / ".env").write_text("".join(f"{name}={text}\n" for name, text in settings.items()))
        if server_env:
            (folder / "server.env").write_text(server_env)
        chosen = {"compose.yaml": cpu or alerts, "cpu.yaml": cpu, "alertmanager.yaml": alerts}
        files = [part for name, is_named in chosen.items() if is_named for part in ("--file", name)]
        return subprocess.run(
            [Path(sys.executable).with_name("docker-compose"), *files, "config"],
            cwd=folder,
            env={name: text for name, text in os.environ.items() if name not in env_example()},
            capture_output=True,
            text=True,
            timeout=60,
        )

    return config


def env_example() -> dict[str, str]:
    """The settings of .env.example, which are commented out."""
    lines = (DEPLOY / ".env.example").read_text().splitlines()
    return dict(line[1:].split("=", 1) for line in lines if re.match("#[A-Z_]+=", line))


def render(**values: Any) -> Manifests:
    """The chart's manifests for these values and the required ones, by kind and name."""
    with Chart.load(CHART) as chart:
        files = chart.render(values=REQUIRED | values, name="demo", namespace="serving")
    found = [manifest for text in files.values() for manifest in yaml.safe_load_all(text) if manifest]
    manifests = {(manifest["kind"], manifest["metadata"]["name"]): manifest for manifest in found}
    assert len(manifests) == len(found), "Two manifests have the same kind and name."
    return manifests
