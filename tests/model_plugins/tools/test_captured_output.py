"""The output that the tools keep, and the cause of a failure in it."""

import os

import pytest

from prismoe.model_plugins.tools.captured_output import captured_output

ERROR = RuntimeError("Engine core initialization failed.")


@pytest.fixture(autouse=True)
def _keep_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore what `captured_output` sets for vLLM."""
    for name in ("VLLM_LOGGING_LEVEL", "VLLM_NO_USAGE_STATS", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))


def test_the_first_printed_error_is_the_cause() -> None:
    with captured_output(verbose=False) as log:
        os.write(1, b"(EngineCore pid=7) ValueError: no memory is left\nRuntimeError: see above\n")
        assert log.cause(ERROR) == "no memory is left"


def test_without_a_printed_error_the_message_names_verbose() -> None:
    with captured_output(verbose=False) as log:
        assert log.cause(ERROR) == (
            "Engine core initialization failed. Run the command with --verbose to see vLLM's log."
        )


def test_a_verbose_run_has_shown_the_log() -> None:
    with captured_output(verbose=True) as log:
        assert log.cause(ERROR) == "Engine core initialization failed."
