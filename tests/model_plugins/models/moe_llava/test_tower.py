"""The places where a checkpoint's tower is searched, and the message if it is not found."""

from pathlib import Path

import pytest
from huggingface_hub import constants

from prismoe.model_plugins.models.moe_llava.tower import find_tower, find_whole_tower

CLIP = "openai/clip-vit-large-patch14-336"
IN_A_CACHE = "/root/.cache/huggingface/hub/models--openai--clip-vit-large-patch14-336/snapshots/ce19dc9"

PLACES = [
    # the name in the checkpoint, and the tower's folder
    (CLIP, f"checkpoints/moe/{CLIP}"),
    (CLIP, f"checkpoints/{CLIP}"),
    (CLIP, "checkpoints/clip-vit-large-patch14-336"),
    ("tower", "checkpoints/moe/tower"),
    ("./tower", "checkpoints/tower"),
    ("/data1/models/clip-336", "checkpoints/clip-336"),
    ("/data1/models/clip-336/", "checkpoints/moe/clip-336"),
    ("../towers/clip-336", "checkpoints/clip-336"),
    (r"D:\models\clip-336", "checkpoints/clip-336"),
    (IN_A_CACHE, "checkpoints/ce19dc9"),
    ("towers/clip", "here/towers/clip"),
]


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint's folder. The test runs in another folder, `here`."""
    for folder in ("checkpoints/moe", "here"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "checkpoints" / "moe"


def write_tower(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in ("config.json", "preprocessor_config.json"):
        (folder / name).write_text("{}")
    return folder


@pytest.mark.parametrize(("name", "place"), PLACES)
def test_a_tower_is_found(tmp_path: Path, checkpoint: Path, name: str, place: str) -> None:
    tower = write_tower(tmp_path / place)
    assert find_tower(name, str(checkpoint)).resolve() == tower


@pytest.mark.parametrize("message", [".", "../moe"])
def test_a_tower_beside_a_checkpoint_with_a_relative_path(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    tower = write_tower(tmp_path / "checkpoints" / "clip-336")
    monkeypatch.chdir(checkpoint)
    assert find_tower("/data1/clip-336", message).resolve() == tower


def test_a_tower_by_an_absolute_path(tmp_path: Path, checkpoint: Path) -> None:
    tower = write_tower(tmp_path / "elsewhere" / "clip")
    assert find_tower(str(tower), str(checkpoint)) == tower


def test_a_path_of_another_machine_is_refused_with_advice(checkpoint: Path) -> None:
    with pytest.raises(FileNotFoundError) as refused:
        find_tower("/data1/models/clip-336", str(checkpoint))
    message = str(refused.value)
    for place in ("/data1/models/clip-336", checkpoint / "clip-336", checkpoint.parent / "clip-336"):
        assert message.count(f"{place},") + message.count(f"{place}.") >= 1, place
    assert message.count("/data1/models/clip-336") == 2, "once as it is named, once as a place"
    assert "hf download" not in message
    assert f"Put the tower's folder beside the checkpoint, as {checkpoint.parent / 'clip-336'}." in message


@pytest.mark.parametrize("name", [CLIP, IN_A_CACHE])
def test_a_hub_name_is_fetched(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    hub = Hub(tmp_path / "cache")
    monkeypatch.setattr("prismoe.model_plugins.files.hub.snapshot_download", hub.snapshot_download)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    tower = find_tower(name, str(checkpoint))
    assert hub.asked == [(CLIP, ["config.json", "preprocessor_config.json"])]
    assert not list(tower.glob("*.safetensors"))
    assert list(find_whole_tower(name, str(checkpoint)).glob("*.safetensors"))
    assert [asked for asked, _ in hub.asked] == [CLIP, CLIP]


class Hub:
    """A Hub with a tower for every name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[tuple[str, list[str] | None]] = []

    def snapshot_download(
        self,
        name: str,
        local_files_only: bool = False,
        allow_patterns: list[str] | None = None,
        **options: object,
    ) -> str:
        if local_files_only:
            if not self.folder.exists():
                raise FileNotFoundError
            return str(self.folder)
        self.asked.append((name, allow_patterns))
        if not self.folder.exists():
            write_tower(self.folder)
        if allow_patterns is None:
            (self.folder / "model.safetensors").touch()
        return str(self.folder)


def test_a_hub_name_offline(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        FileNotFoundError, match=rf"HF_HUB_OFFLINE is set\. Fetch it with `hf download {CLIP}`"
    ):
        find_tower(CLIP, str(checkpoint))


def test_a_hub_name_that_cannot_be_fetched(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(name: str, local_files_only: bool = False, **options: object) -> str:
        raise ConnectionError("no route to the Hub\nmore lines")

    monkeypatch.setattr("prismoe.model_plugins.files.hub.snapshot_download", snapshot_download)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(
        FileNotFoundError, match=rf"{CLIP} is not available .*: no route to the Hub\. Fetch it with"
    ):
        find_tower(CLIP, str(checkpoint))
