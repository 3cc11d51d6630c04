"""The settings in the --additional-config of `vllm serve`."""

import json
import re
from typing import Any

import pytest

from prismoe.model_plugins.worker.engine_options import engine_options
from prismoe.model_plugins.worker.settings import EngineSettings
from tests.paths import REPOSITORY


def test_missing_settings_have_defaults() -> None:
    nothing: list[dict[str, Any] | None] = [
        None,
        {},
        {"another_plugin": 1},
        {"prismoe": None},
        {"prismoe": {}},
    ]
    assert [EngineSettings.of(config) for config in nothing] == [EngineSettings()] * len(nothing)
    assert EngineSettings.of({"prismoe": {"routes": True}}) == EngineSettings(routes=True)
    assert EngineSettings.of(engine_options({"policy": "topk"})["additional_config"]).routing == {
        "policy": "topk"
    }
    beside = engine_options({"policy": "native"}, {"policy": "ltdr"})["additional_config"]
    assert EngineSettings.of(beside).shadow == {"policy": "ltdr"}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"colour": 1}, "prismoe.colour: Extra inputs are not permitted."),
        ({"expert_metrics": "all"}, "prismoe.expert_metrics: Input should be 'summary' or 'full'."),
        ({"expert_load_interval": 0}, "prismoe.expert_load_interval: Input should be greater than 0."),
        (
            {"routing": {"policy": "ltdr"}, "shadow": {"policy": "ltdr"}},
            "prismoe: A shadow policy is counted while the model routes by native, and the setting routing "
            "puts another policy in force: leave one of both out.",
        ),
        ({"shadow": "{"}, "prismoe.shadow: '{' is not JSON"),
        (3, "prismoe: Input should be a valid dictionary or instance of EngineSettings."),
    ],
)
def test_impossible_settings_are_refused_by_name(config: Any, message: str) -> None:
    with pytest.raises(ValueError) as refusal:
        EngineSettings.of({"prismoe": config})
    assert str(refusal.value).startswith(f"--additional-config: {message}")


def test_the_page_lists_all_settings_with_their_defaults() -> None:
    page = (REPOSITORY / "docs" / "plugin.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \|", page, re.M)
    reported = {name: default.strip("`") for name, default in rows}
    defaults = {name: field.default for name, field in EngineSettings.model_fields.items()}
    assert reported == {
        name: value
        if isinstance(value, str)
        else f"{value:g}"
        if isinstance(value, float)
        else json.dumps(value)
        for name, value in defaults.items()
    }
