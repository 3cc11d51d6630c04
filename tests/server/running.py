"""A `prismoe` command as a child process, and every process that descends from it."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil

from prismoe.loadtests.local_server import free_port
from tests.runners import Runner, runner_environment

START_LIMIT_S = 240
STOP_LIMIT_S = 40
PRISMOE = (sys.executable, "-P", "-m", "prismoe.server.commands.cli")
END_WITH_PARENT = ("setpriv", "--pdeathsig", "TERM")  # a program of util-linux, as `unshare` is


class Command:
    """Runs `prismoe <arguments>` with its output in a file.

    `prefix` is a program that replaces itself with it. `program` runs instead of prismoe; `environment` adds
    variables. The process ends with the thread that starts it, so that no server outlives killed tests.
    """

    def __init__(
        self,
        log: Path,
        *arguments: str,
        prefix: Sequence[str] = (),
        runner: Runner = "v1",
        program: Sequence[str] = PRISMOE,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.log = log
        self.family: set[psutil.Process] = set()
        # vLLM's settings of other tests would hide the server's own. As in those, operations use one thread.
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("VLLM_", "HF_"))}
        own = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"} | runner_environment(runner)
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [*prefix, *END_WITH_PARENT, *program, *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**inherited, **own, **environment},
                # Not a session: Linux schedules sessions separately, and the busy loops starve others.
                process_group=0,
            )

    @property
    def output(self) -> str:
        """The output until now."""
        return self.log.read_text(errors="replace")

    def watch(self) -> bool:
        """Record its descendants, and return whether it still runs."""
        if self.process.poll() is not None:
            return False
        self.family.update(psutil.Process(self.process.pid).children(recursive=True))
        return True

    def wait(self, limit_s: float = START_LIMIT_S) -> int:
        """Wait for its end, and return the exit status."""
        end = time.monotonic() + limit_s
        while self.watch():
            assert time.monotonic() < end, self.output
            time.sleep(0.1)
        return int(self.process.returncode)

    def stop(self, signal_number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal to this process only, wait, and return the exit status."""
        self.watch()
        self.process.send_signal(signal_number)
        return int(self.process.wait(STOP_LIMIT_S))

    def press_ctrl_c(self) -> int:
        """Send SIGINT to all its processes, as a terminal does, wait, and return the exit status."""
        self.watch()
        os.killpg(self.process.pid, signal.SIGINT)
        return int(self.process.wait(STOP_LIMIT_S))

    def kill(self) -> None:
        """Kill it and all of its descendants."""
        self.watch()
        self.process.kill()
        for process in self.family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()

    def survivors(self) -> list[psutil.Process]:
        """The descendants that still run after its end."""
        return psutil.wait_procs(self.family, timeout=STOP_LIMIT_S)[1]


class Server(Command):
    """A running `prismoe serve`."""

    def __init__(
        self,
        log: Path,
        *arguments: str,
        port: int = 0,
        **options: Any,
    ) -> None:
        port = port or free_port()
        self.url = f"http://127.0.0.1:{port}"
        address = ("--host", "127.0.0.1", "--port", str(port))
        super().__init__(log, "serve", *arguments, *address, **options)

    def wait_until_ready(self) -> None:
        """Wait until the server answers."""
        end = time.monotonic() + START_LIMIT_S
        while not self.answers():
            assert self.watch() and time.monotonic() < end, self.output
            time.sleep(0.2)

    def answers(self) -> bool:
        """Whether the server answers."""
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                return True
        except OSError:  # Nothing listens, or it has not started yet. urllib's errors are OSErrors, too.
            return False
