"""A real Prometheus with the project's rules, as a child process."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from prismoe.benchmarks.paths import REPOSITORY
from prismoe.loadtests.local_server import free_port

DEPLOY = REPOSITORY / "deploy"
RULES = DEPLOY / "prometheus" / "rules" / "prismoe.yaml"

CONFIG = """\
global: {{scrape_interval: {interval_s}s, evaluation_interval: 1s}}
rule_files: ["{rules}"]
scrape_configs: [{{job_name: prismoe, static_configs: [{{targets: {targets}}}]}}]
"""


def program(name: str) -> str:
    """The path of `prometheus` or `promtool`; the Makefile installs both next to Python."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    assert found, f"{name} is not installed: run `deploy/prometheus/install.sh .venv/bin`."
    return found


class Prometheus:
    """A running Prometheus, which scrapes servers every `interval_s` seconds."""

    def __init__(self, folder: Path, *server_urls: str, interval_s: int = 1) -> None:
        address = f"127.0.0.1:{free_port()}"
        config = folder / "prometheus.yml"
        targets = json.dumps([url.removeprefix("http://") for url in server_urls])
        config.write_text(CONFIG.format(rules=RULES, targets=targets, interval_s=interval_s))
        self.url = f"http://{address}"
        self.log = folder / "prometheus.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    program("prometheus"),
                    f"--config.file={config}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address={address}",
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def stop(self) -> None:
        """Stop the process."""
        self.process.terminate()
        self.process.wait(30)

    def get(self, path: str, **parameters: str) -> Any:
        """The data at a path of Prometheus' API."""
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=10)
        return answer.raise_for_status().json()["data"]

    def query(self, expr: str) -> list[tuple[dict[str, str], float]]:
        """The current samples of an expression: labels and value."""
        result = self.get("query", query=expr)["result"]
        return [(sample["metric"], float(sample["value"][1])) for sample in result]

    def rules(self) -> list[dict[str, Any]]:
        """The rules and their state."""
        return [rule for group in self.get("rules")["groups"] for rule in group["rules"]]

    def wait_until(self, true: Callable[[], bool], limit_s: float) -> float:
        """Wait until `true` returns True, and return the seconds that it took."""
        start = time.monotonic()
        while not self._is(true):
            assert self.process.poll() is None and time.monotonic() - start < limit_s, self.log.read_text()
            time.sleep(0.2)
        return time.monotonic() - start

    def _is(self, true: Callable[[], bool]) -> bool:
        try:
            return true()
        except httpx.HTTPError:
            return False  # Prometheus is still starting
