"""Signals before a server is ready, sent to small programs in its place."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

LIMIT_S = 60

IMPORTS = """
import sys, time
from prismoe.server.commands.interruption import silent_imports
try:
    with silent_imports():
        print("ready", flush=True)
        time.sleep(100)
finally:
    print("not silent", flush=True)
"""

NO_ENGINE = """
import time
from prismoe.server.commands.interruption import StartSignals
StartSignals().take()
print("ready", flush=True)
try:
    time.sleep(100)
except BaseException:
    pass  # as some library may
time.sleep(100)
"""

ENGINE = """
import multiprocessing, subprocess, sys, time
from prismoe.server.commands.interruption import StartSignals

def engine():
    subprocess.Popen([sys.executable, "-c", "print('ready', flush=True); import time; time.sleep(100)"])
    time.sleep(100)

if __name__ == "__main__":
    StartSignals().take()
    child = multiprocessing.get_context(sys.argv[1]).Process(target=engine)
    child.start()
    try:
        time.sleep(100)
    finally:
        child.join(10)
        print("cleaned up", child.exitcode, flush=True)
"""


class Program:
    """A Python program in its own process group that has printed that it is ready."""

    def __init__(self, file: Path, text: str, *arguments: str) -> None:
        file.write_text(text)
        self.process = subprocess.Popen(
            [sys.executable, str(file), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"
        self.family = psutil.Process(self.process.pid).children(recursive=True)

    def end(self, number: signal.Signals) -> tuple[int, str]:
        """Send a signal to the group as a terminal does; return the exit status and the output."""
        os.killpg(self.process.pid, number)
        message = self.process.communicate(timeout=LIMIT_S)[0]
        assert psutil.wait_procs(self.family, timeout=LIMIT_S)[1] == []
        return self.process.returncode, message


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("text", [IMPORTS, NO_ENGINE])
def test_without_an_engine_a_signal_ends_the_process_at_once(
    tmp_path: Path, text: str, number: signal.Signals, status: int
) -> None:
    assert Program(tmp_path / "program.py", text).end(number) == (status, "")


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_ctrl_c_reaches_only_the_server_which_kills_its_engine(tmp_path: Path, method: str) -> None:
    program = Program(tmp_path / "program.py", ENGINE, method)
    assert len(program.family) == 3  # with multiprocessing's resource tracker
    assert program.end(signal.SIGINT) == (130, f"cleaned up {-signal.SIGKILL}\n")


def test_after_the_imports_a_signal_works_as_before() -> None:
    program = (
        "import os, signal\n"
        "from prismoe.server.commands.interruption import silent_imports\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # A job in the background ignores it.
        "with silent_imports(): pass\n"
        "try: os.kill(os.getpid(), signal.SIGINT)\n"
        "except KeyboardInterrupt: print('interrupted')\n"
    )
    message = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=LIMIT_S)
    assert message.stdout == "interrupted\n"
