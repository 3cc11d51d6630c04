"""Processes whose starter has ended: its thread, or the whole process."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Connection

import pytest

from prismoe.model_plugins.processes import ASKED, ask_to_end_with_parent, end_with_parent_if_asked


def engine(ready: Connection) -> None:
    """Do what each process of an engine does when vLLM loads the plugin."""
    end_with_parent_if_asked()
    ready.send(True)
    time.sleep(30)


def exit_code_after_its_thread() -> int | None:
    """The exit code of an engine that a thread started, or None if it still runs."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=engine, args=(there,))

    def start() -> None:
        process.start()
        assert here.recv()

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    process.join(1)
    try:
        return process.exitcode
    finally:
        process.kill()
        process.join()


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ASKED, "")
    del os.environ[ASKED]


@pytest.mark.usefixtures("environment")
def test_an_engine_outlives_the_thread_that_started_it() -> None:
    assert exit_code_after_its_thread() is None


@pytest.mark.usefixtures("environment")
def test_it_ends_with_its_thread_if_that_was_requested() -> None:
    ask_to_end_with_parent()
    assert exit_code_after_its_thread() == -signal.SIGKILL


def late_engine(ready: Connection) -> None:
    """A process that loads the plugin only after the process that started it has ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    while os.getppid() == parent.pid:
        time.sleep(0.01)
    end_with_parent_if_asked()
    ready.send(True)


def start_and_end(ready: Connection) -> None:
    multiprocessing.get_context("spawn").Process(target=late_engine, args=(ready,)).start()
    os._exit(0)


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("asked", [True, False])
def test_it_ends_if_its_parent_ended_before_it_could_register(asked: bool) -> None:
    if asked:
        ask_to_end_with_parent()
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=start_and_end, args=(there,))
    process.start()
    there.close()
    process.join()
    if asked:
        with pytest.raises(EOFError):
            here.recv()
    else:
        assert here.recv() is True


@pytest.mark.parametrize(("parent", "message"), [("ends", ""), ("waits", "forked")])
def test_a_fork_ends_if_its_parent_ended_before_it_could_register(parent: str, message: str) -> None:
    program = (
        "import os, sys, time; from prismoe.model_plugins.processes import end_forks_with_parent\n"
        "def wait_for_its_end():\n"
        "    while sys.argv[1] == 'ends' and os.getppid() == parent: time.sleep(0.01)\n"
        "parent = os.getpid()\n"
        "os.register_at_fork(after_in_child=wait_for_its_end)\n"
        "end_forks_with_parent()\n"
        "if os.fork(): os._exit(0 if sys.argv[1] == 'ends' else os.wait()[1])\n"
        "print('forked')\n"
    )
    command = [sys.executable, "-c", program, parent]
    assert subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.strip() == message
