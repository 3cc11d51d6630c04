"""Processes that a thread started, which has ended since."""

import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.connection import Connection

import pytest

from prismoe.model_plugins.processes import ASKED, ask_to_end_with_parent, end_with_parent_if_asked


def engine(ready: Connection) -> None:
    """What each process of an engine does as vLLM loads the plugin."""
    end_with_parent_if_asked()
    ready.send(True)
    time.sleep(30)


def exit_code_after_its_thread() -> int | None:
    """How an engine ended that a thread started; None where it runs on."""
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
def test_it_ends_with_it_where_that_was_asked_for() -> None:
    ask_to_end_with_parent()
    assert exit_code_after_its_thread() == -signal.SIGKILL
