"""A Hub name becomes a folder of the local cache, or an error message."""

import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from prismoe.model_plugins.files.hub import checkpoint_folder
from tests.model_plugins.engine import PHI

NAME = "LanguageBind/MoE-LLaVA-Tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A hub cache that holds the Phi fixture as NAME."""
    repository = tmp_path / "models--LanguageBind--MoE-LLaVA-Tiny"
    shutil.copytree(PHI, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return tmp_path


def test_a_folder_stays_as_it_is(tmp_path: Path) -> None:
    assert checkpoint_folder(str(tmp_path)) == tmp_path


def test_a_name_is_found_in_the_cache(cache: Path) -> None:
    folder = checkpoint_folder(NAME, cache=str(cache))
    assert folder.name == COMMIT and (folder / "config.json").is_file()
    assert checkpoint_folder(NAME, revision=COMMIT, cache=str(cache)) == folder


@pytest.mark.parametrize("what_is_there", ["nothing", "only a config"])
def test_an_incomplete_snapshot_is_refused_offline(
    cache: Path, monkeypatch: pytest.MonkeyPatch, what_is_there: str
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    name = NAME if what_is_there == "only a config" else "LanguageBind/other"
    for weights in cache.rglob("*.safetensors"):
        weights.unlink()
    with pytest.raises(ValueError, match=f"HF_HUB_OFFLINE is set. Fetch it with `hf download {name}`"):
        checkpoint_folder(name, cache=str(cache))


def test_a_model_that_is_not_in_the_cache_is_downloaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked_for = []

    def snapshot_download(name: str, local_files_only: bool = False, **options: object) -> str:
        if local_files_only:
            raise FileNotFoundError
        asked_for.append(name)
        return str(PHI)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("prismoe.model_plugins.files.hub.snapshot_download", snapshot_download)
    assert checkpoint_folder(NAME) == PHI
    assert asked_for == [NAME]


def test_a_download_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def snapshot_download(name: str, local_files_only: bool = False, **options: object) -> str:
        raise ConnectionError("no route to the Hub\nmore lines")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("prismoe.model_plugins.files.hub.snapshot_download", snapshot_download)
    with pytest.raises(
        ValueError, match=rf"could not be downloaded \(no route to the Hub\). .*download {NAME}`"
    ):
        checkpoint_folder(NAME)


@pytest.mark.parametrize("name", ["not a name", "a/b/c"])
def test_a_wrong_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="neither a folder nor a name on the Hugging Face Hub"):
        checkpoint_folder(name)
