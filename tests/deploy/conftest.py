"""Compose's own reading of compose.yaml, and the chart rendered by Helm, shared by the tests."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from helm_python import Chart

REPOSITORY = Path(__file__).parents[2]
DEPLOY = REPOSITORY / "deploy"
CHART = DEPLOY / "kubernetes"

REQUIRED = {
    "image": "registry.example/prismoe:0.1.0-cuda",
    "checkpointsClaim": "checkpoints",
    "model": "MoE-LLaVA-Phi2-2.7B-4e",
    "apiKeySecret": "prismoe",
}

Compose = Callable[..., subprocess.CompletedProcess[str]]
Manifests = dict[tuple[str, str], dict[str, Any]]


@pytest.fixture
def compose(tmp_path: Path) -> Compose:
    """Runs `docker compose config` with .env.example's settings and these changes; None takes one out."""

    def config(changes: Mapping[str, str | None] | None = None) -> subprocess.CompletedProcess[str]:
        settings = dict(env_example()) | dict(changes or {})
        env_file = tmp_path / ".env"
        env_file.write_text(
            "\n".join(f"{name}={text}" for name, text in settings.items() if text is not None)
        )
        command = [Path(sys.executable).with_name("docker-compose"), "--env-file", env_file]
        environment = {name: text for name, text in os.environ.items() if name not in env_example()}
        return subprocess.run(
            [*command, "--file", DEPLOY / "compose.yaml", "config"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return config


def env_example() -> dict[str, str]:
    """The settings of .env.example."""
    lines = (DEPLOY / ".env.example").read_text().splitlines()
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {name: text for name, _, text in pairs}


def render(**values: Any) -> Manifests:
    """What the chart makes of these values and the required ones, by kind and name."""
    with Chart.load(CHART) as chart:
        files = chart.render(values=REQUIRED | values, name="demo", namespace="serving")
    found = [manifest for text in files.values() for manifest in yaml.safe_load_all(text) if manifest]
    manifests = {(manifest["kind"], manifest["metadata"]["name"]): manifest for manifest in found}
    assert len(manifests) == len(found), "Two manifests have the same kind and name."
    return manifests
