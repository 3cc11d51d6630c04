"""`prismoe convert` writes the same checkpoint, which needs nothing outside its folder."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from prismoe.model_plugins.files.bundled import bundled_checkpoint
from prismoe.model_plugins.models.moe_llava.tower import tower_config, tower_image_processor
from prismoe.model_plugins.routing.registry import choose_routing
from prismoe.model_plugins.tools.convert.self_contained import write_self_contained
from prismoe.server.commands.cli import main
from tests.model_plugins.engine import PHI
from tests.model_plugins.tiny_checkpoints import make_checkpoint
from tests.model_plugins.tools.check.test_check import assert_one_sentence, prismoe
from tests.model_plugins.tools.references import write_reference
from tests.paths import DATA

TOWER_OF_FAMILY = {"phi": "clip", "qwen": "siglip", "qwen2": "siglip"}
"""StableLM's tensors have the names and shapes of Qwen 2's."""


def weights(folder: Path) -> dict[str, Tensor]:
    return {name: w for file in folder.glob("*.safetensors") for name, w in load_file(file).items()}


def assert_same_weights(folder: Path, expected: dict[str, Tensor]) -> None:
    actual = weights(folder)
    assert actual.keys() == expected.keys()
    assert all(
        torch.equal(actual[name], weight) and actual[name].dtype == weight.dtype
        for name, weight in expected.items()
    )


def config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def convert(source: Path, destination: Path, *options: str) -> int:
    return main(["convert", str(source), str(destination), *options])


@pytest.mark.engine
@pytest.mark.parametrize("family", TOWER_OF_FAMILY)
def test_the_converted_checkpoint_computes_the_same_from_its_folder_alone(
    family: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    source = make_checkpoint(tmp_path / "source", family, TOWER_OF_FAMILY[family])
    reference = tmp_path / "reference.npz"
    write_reference(source, reference)
    assert convert(source, tmp_path / "converted", "--max-shard-size", "300kB") == 0
    moved = tmp_path_factory.mktemp("elsewhere") / "moved"
    assert_same_weights(tmp_path / "converted", weights(source))
    (tmp_path / "converted").rename(moved)
    shutil.rmtree(source.parent)
    done = prismoe("check", moved, "--against", reference)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All within tolerance." in done.stdout
    assert "by the checkpoint's prismoe_routing" in done.stdout
    assert f"in {moved / 'image_tower'}" in done.stdout
    assert f"{4 - (TOWER_OF_FAMILY[family] == 'siglip') + 12} tokens an image" in done.stdout
    assert "tensors     " in done.stdout


def test_tower_routing_and_settings_are_copied(tmp_path: Path) -> None:
    assert convert(PHI, tmp_path / "converted") == 0
    before, after = config(PHI), config(tmp_path / "converted")
    topk = {"policy": "topk", "top_k": 2, "norm_topk_prob": True}
    assert after == before | {"mm_image_tower": "image_tower", "prismoe_routing": topk}
    name, folder = before["mm_image_tower"], str(tmp_path / "converted")
    assert tower_config("image_tower", folder).to_dict() == tower_config(name, str(PHI)).to_dict()
    image = Image.open(DATA / "image.png").convert("RGB")
    pixels = [
        tower_image_processor(tower, checkpoint)(image, return_tensors="pt")["pixel_values"]
        for tower, checkpoint in (("image_tower", folder), (name, str(PHI)))
    ]
    assert torch.equal(*pixels)
    generation = "generation_config.json"
    assert (tmp_path / "converted" / generation).read_bytes() == (PHI / generation).read_bytes()
    assert (tmp_path / "converted" / "model.safetensors").is_file()
    assert (tmp_path / "converted").stat().st_mode & 0o777 == 0o755


def test_the_operators_routing_is_written(tmp_path: Path) -> None:
    routing = {"policy": "ltdr", "tail_experts": 3, "layers": {"2": {"policy": "topk", "top_k": 1}}}
    assert convert(PHI, tmp_path / "converted", "--routing", json.dumps(routing)) == 0
    written = config(tmp_path / "converted")["prismoe_routing"]
    assert written["tail_experts"] == 3
    before, after = (
        [layer.policy for layer in choose_routing(operator, checkpoint, 2, {0: 4, 2: 4}).layers.values()]
        for operator, checkpoint in ((routing, None), (None, written))
    )
    assert before == after


def test_the_bundled_checkpoint_keeps_its_routing_and_template(tmp_path: Path) -> None:
    assert convert(bundled_checkpoint(), tmp_path / "converted") == 0
    assert config(tmp_path / "converted")["prismoe_routing"]["policy"] == "ltdr"
    template = "chat_template.jinja"
    assert (tmp_path / "converted" / template).read_text() == (bundled_checkpoint() / template).read_text()


def test_shards(tmp_path: Path) -> None:
    assert convert(PHI, tmp_path / "converted", "--max-shard-size", "200kB") == 0
    index = json.loads((tmp_path / "converted" / "model.safetensors.index.json").read_text())
    shards = {file.name: load_file(file) for file in (tmp_path / "converted").glob("*.safetensors")}
    assert set(shards) == {f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)}
    assert len(shards) > 1
    assert all(sum(w.nbytes for w in shard.values()) <= 200_000 for shard in shards.values())
    assert index["weight_map"] == {name: file for file, shard in shards.items() for name in shard}
    assert index["metadata"]["total_size"] == sum(w.nbytes for w in weights(PHI).values())
    assert_same_weights(tmp_path / "converted", weights(PHI))


def test_an_old_bin_checkpoint(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path, "stablelm")
    expected = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    halves = list(expected)[::2], list(expected)[1::2]
    for number, names in enumerate(halves, 1):
        file = source / f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({name: expected[name] for name in names}, file)
    assert convert(source, tmp_path / "converted") == 0
    assert_same_weights(tmp_path / "converted", expected)


def test_the_towers_weights_come_from_its_folder_if_the_checkpoint_lacks_them(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path, "qwen", "siglip")
    expected = load_file(source / "model.safetensors")
    prefix = "transformer.image_tower.image_tower."
    own = {name: weight for name, weight in expected.items() if not name.startswith(prefix)}
    tower = {name.removeprefix(prefix): expected[name] for name in expected.keys() - own.keys()}
    save_file(own, source / "model.safetensors")
    save_file(tower | {"text_model.head.weight": torch.ones(1)}, tmp_path / "towers/siglip/model.safetensors")
    assert convert(source, tmp_path / "converted") == 0
    assert_same_weights(tmp_path / "converted", expected)


def test_another_dtype(tmp_path: Path) -> None:
    assert convert(PHI, tmp_path / "converted", "--dtype", "float32") == 0
    assert config(tmp_path / "converted")["torch_dtype"] == "float32"
    assert_same_weights(tmp_path / "converted", {name: w.float() for name, w in weights(PHI).items()})


def test_a_dense_checkpoint_gets_no_routing(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path, "qwen", moe=None)
    assert convert(source, tmp_path / "converted") == 0
    assert "prismoe_routing" not in config(tmp_path / "converted")


def test_a_destination_that_is_not_empty_is_not_changed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "converted").mkdir()
    (tmp_path / "converted" / "notes.txt").write_text("mine")
    assert convert(PHI, tmp_path / "converted") == 1
    assert_one_sentence(capfd, "exists and is not an empty folder")
    assert [file.name for file in (tmp_path / "converted").iterdir()] == ["notes.txt"]


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source", "phi")
    tensors = load_file(source / "model.safetensors")
    save_file(dict(list(tensors.items())[:9]), source / "model-00001-of-00002.safetensors")
    save_file(dict(list(tensors.items())[9:]), source / "model.safetensors")
    whole = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(whole[:-100])
    (tmp_path / "converted").mkdir()
    assert convert(source, tmp_path / "converted" / "new") == 1
    assert list((tmp_path / "converted").iterdir()) == []


def test_an_interrupt_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"{write_self_contained.__module__}.write_sharded", interrupt)
    assert convert(PHI, tmp_path / "new") == 130
    assert list(tmp_path.iterdir()) == []
