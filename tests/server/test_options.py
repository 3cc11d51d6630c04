"""What vLLM's options become, without an engine."""

import shutil
from pathlib import Path

import pytest

from prismoe.server.options import parse_engine_options
from prismoe.server.settings import ServeSettings
from tests.model_plugins.engine import PHI

NAME, COMMIT = "LanguageBind/MoE-LLaVA-Tiny", "0123456789abcdef0123456789abcdef01234567"


def test_a_hub_name_is_served_under_that_name_from_the_local_cache(tmp_path: Path) -> None:
    repository = tmp_path / "models--LanguageBind--MoE-LLaVA-Tiny"
    folder = shutil.copytree(PHI, repository / "snapshots" / COMMIT)
    options = ("--download-dir", str(tmp_path), "--revision", COMMIT)
    args = parse_engine_options(ServeSettings(model=NAME, engine_options=options))
    assert args.model == str(folder)
    assert args.served_model_name == [NAME]


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        (("--trust-remote-code",), "runs no code out of a checkpoint"),
        (("--headless",), "one HTTP process"),
        (("--api-server-count", "2"), "one HTTP process"),
    ],
)
def test_what_prismoe_does_not_do_is_refused_with_a_sentence(option: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        parse_engine_options(ServeSettings(model=str(PHI), engine_options=option))


def test_another_name_may_be_asked_for() -> None:
    settings = ServeSettings(model=str(PHI), engine_options=("--served-model-name", "mine"))
    args = parse_engine_options(settings)
    assert args.model == str(PHI)
    assert args.served_model_name == ["mine"]
