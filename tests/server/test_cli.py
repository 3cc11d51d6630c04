"""The command line, without an engine."""

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from prismoe.model_plugins.bundled import bundled_checkpoint
from prismoe.server.arguments import serve_settings
from prismoe.server.cli import main
from prismoe.server.settings import ServeSettings


def test_without_a_model_the_bundled_one_is_served() -> None:
    settings = serve_settings([])
    assert Path(settings.model) == bundled_checkpoint() and settings.bundled
    assert settings.routing is None
    assert settings.expert_load_interval == 5
    assert settings.expert_metrics == "summary"


def test_vllms_options_are_left_to_vllm() -> None:
    settings = serve_settings(["org/model", "--port", "8001", "--routing", '{"policy": "topk"}', "-tp", "2"])
    assert settings.model == "org/model" and not settings.bundled
    assert settings.routing == {"policy": "topk"}
    assert settings.engine_options == ("--port", "8001", "-tp", "2")


def test_an_options_value_is_not_taken_for_the_model() -> None:
    settings = serve_settings(["--port", "8001"])
    assert settings.bundled
    assert settings.engine_options == ("--port", "8001")


def test_the_model_may_be_an_option() -> None:
    assert serve_settings(["--model", "org/model", "--seed", "1"]).model == "org/model"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--routing", "{"], "--routing: '{' is not JSON"),
        (["--routing", "[1]"], "--routing: '[1]' is not a JSON object."),
        (["--routing", '"ltdr"'], "is not a JSON object."),
        (["--expert-load-interval", "0"], "--expert-load-interval: Input should be greater than 0"),
        (["--expert-load-interval", "often"], "--expert-load-interval: Input should be a valid number"),
        (["--expert-load-interval", "inf"], "--expert-load-interval: Input should be a finite number"),
        (["--expert-metrics", "all"], "--expert-metrics: Input should be 'summary' or 'full'"),
        (["--max-requests", "0"], "--max-requests: Input should be greater than 0"),
        (["--body-seconds", "inf"], "--body-seconds: Input should be a finite number"),
        (
            ["--stuck-seconds", "15", "--ready-seconds", "20"],
            "has to be smaller than --stuck-seconds (15): an idle",
        ),
        (
            ["--heartbeat-seconds", "60"],
            "--heartbeat-seconds (60) has to be smaller than --ready-seconds (60): ",
        ),
        (["/no/such/folder"], "There is no folder /no/such/folder."),
    ],
)
def test_wrong_settings_are_refused_with_a_sentence(
    capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    assert main(["serve", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("prismoe: ") and sentence in error
    assert len(error.splitlines()) == 1


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ValidationError, match="port"):
        ServeSettings.model_validate({"port": 8000})


@pytest.mark.parametrize(
    "arguments", [["--help"], ["serve", "--help"], ["demo", "--help"], ["top", "--help"]]
)
def test_help_imports_no_engine(arguments: list[str]) -> None:
    program = (
        "import sys\n"
        "from prismoe.server.cli import main\n"
        "try:\n"
        f"    main({arguments!r})\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0\n"
        "assert not {'vllm', 'torch', 'transformers'} & set(sys.modules)\n"
    )
    help_text = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert help_text.startswith("usage: prismoe")
