"""Runs checks one after the other, each in its own process, and keeps the line of each."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from prismoe.benchmarks.gpu_check.check import Check, Line, Result
from prismoe.benchmarks.paths import REPOSITORY

LINES = "lines.jsonl"
ALONE = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
"""No check uses the network."""


def dry_environment() -> Mapping[str, str]:
    """The environment of a process that runs vLLM's V2 runner and Triton's interpreter on one CPU core."""
    path = [str(REPOSITORY / "tests" / "v2_runner"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        "PYTHONPATH": os.pathsep.join(path),
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }


def kept_lines(out: Path) -> Sequence[Line]:
    """The lines of earlier runs with the same folder."""
    file = out / LINES
    texts = file.read_text().splitlines() if file.exists() else []
    return [Line.model_validate_json(text) for text in texts]


def run_checks(module: str, out: Path, *, is_dry: bool, limit_s: float, again: bool = False) -> int:
    """Run the module's CHECKS that have no line in `out` yet, or all of them `again`.

    After `limit_s` seconds no further check starts, and the running one is stopped without a line. Returns
    how many checks failed, including those of earlier runs that don't run again.
    """
    checks: Sequence[Check] = import_module(module).CHECKS
    out.mkdir(parents=True, exist_ok=True)
    lines = {} if again else {line.name: line for line in kept_lines(out)}
    end = time.monotonic() + limit_s
    left = [check for check in checks if check.name not in lines]
    if lines:
        print(f"{len(lines)} checks have a line in {out / LINES} and don't run again.", flush=True)
    for place, check in enumerate(left):
        line = _run(module, check, out, is_dry, end)
        if line is None:
            names = "; ".join(check.name for check in left[place:])
            print(f"{limit_s:.0f} s are over. Run the same command again for the other checks: {names}.")
            break
        print(line, flush=True)
        with (out / LINES).open("a") as file:
            file.write(line.model_dump_json() + "\n")
        lines[check.name] = line
    return sum(line.outcome == "failed" for line in lines.values())


def _run(module: str, check: Check, out: Path, is_dry: bool, end: float) -> Line | None:
    """The check's line, or None if the time of all checks runs out. Its output goes to a log in `out`."""
    start = time.monotonic()
    own_limit_s = check.limit_s * (2 if is_dry else 1)
    if start >= end:
        return None
    environment = {**os.environ, **ALONE, **(dry_environment() if is_dry else {}), **check.environment}
    log = out / (re.sub(r"\W+", "-", check.name) + ".log")
    with tempfile.TemporaryDirectory() as folder, log.open("wb") as output:
        file = Path(folder) / "result.json"
        command = [module, check.name, str(file), "dry" if is_dry else "gpu"]
        process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.one", *command],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that an engine's processes end with it
        )
        status: int | None = None
        try:
            status = process.wait(min(own_limit_s, end - start))
        except subprocess.TimeoutExpired:
            if time.monotonic() >= end:
                return None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if file.exists():
            result = Result.model_validate_json(file.read_text())
        elif status is None:
            result = Result(outcome="failed", why=f"took longer than {own_limit_s} s; its output is in {log}")
        else:
            result = Result(outcome="failed", why=f"died with status {status}; its output is in {log}")
    return Line(name=check.name, seconds=time.monotonic() - start, **result.model_dump())
