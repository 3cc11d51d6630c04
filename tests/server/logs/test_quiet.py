"""The quiet log: the lines that stay, and the ways to get vLLM's own log. No engine runs."""

import json
import logging
import subprocess
import sys

import pytest

from prismoe.server.logs.quiet import CONFIG, HARMLESS, NotHarmless, be_quiet, is_quiet

LIMIT_S = 120


@pytest.fixture(autouse=True)
def no_logging_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VLLM_LOGGING_LEVEL", "VLLM_LOGGING_CONFIG_PATH", "VLLM_CONFIGURE_LOGGING"):
        monkeypatch.setenv(name, "")  # restores the settings after the test
        monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "warnoptions", [])


@pytest.mark.parametrize(
    ("verbose", "options"),
    [
        (True, ()),
        (False, ("--log-level", "DEBUG")),
        (False, ("--port", "1", "--logging_config.formatter=json")),
        (False, ("--log-config-file", "mine.json")),
    ],
)
def test_vllms_log_can_be_requested(verbose: bool, options: tuple[str, ...]) -> None:
    be_quiet(verbose, options)
    assert not is_quiet() and not sys.warnoptions


@pytest.mark.parametrize("name", ["VLLM_LOGGING_LEVEL", "VLLM_LOGGING_CONFIG_PATH", "VLLM_CONFIGURE_LOGGING"])
def test_a_setting_in_the_environment_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "0")
    be_quiet(False, ())
    assert not is_quiet()


def test_vllm_only_writes_warnings_and_prismoes_lines() -> None:
    program = (
        "from prismoe.server.logs.quiet import be_quiet\n"
        "be_quiet(False, ('--port', '1'))\n"
        "from argparse import Namespace\n"
        "from vllm.logger import configure_logging_from_args, init_logger\n"
        "configure_logging_from_args(Namespace())\n"
        "for name in ('vllm.engine', 'vllm.prismoe.worker'):\n"
        "    log = init_logger(name)\n"
        "    log.debug('debug'), log.info('info of %s', name), log.warning('a warning of %s', name)\n"
        "init_logger('vllm.config').warning('Triton is not installed. So it goes.')\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=LIMIT_S)
    lines = [line.partition("] ")[2] for line in ran.stdout.splitlines()]
    assert lines == [
        "a warning of vllm.engine",
        "info of vllm.prismoe.worker",
        "a warning of vllm.prismoe.worker",
    ]


def test_an_error_that_begins_like_a_harmless_warning_is_written() -> None:
    def record(level: int, message: str) -> logging.LogRecord:
        return logging.LogRecord("vllm", level, __file__, 1, message, None, None)

    for beginning in HARMLESS:
        assert not NotHarmless().filter(record(logging.WARNING, f"{beginning} More."))
        assert NotHarmless().filter(record(logging.ERROR, f"{beginning} More."))
    assert NotHarmless().filter(record(logging.WARNING, "libtcmalloc is not found"))


def test_uvicorns_warnings_are_written_by_the_same_handler() -> None:
    loggers = json.loads(CONFIG.read_text())["loggers"]
    assert loggers["uvicorn"] == loggers["vllm"]
