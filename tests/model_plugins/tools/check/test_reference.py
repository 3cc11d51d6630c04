"""The accepted reference files, and the messages for others."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prismoe.model_plugins.tools.check.reference import IMAGE, Reference, read_reference
from prismoe.model_plugins.tools.checkpoint_facts import CheckpointFacts, checkpoint_facts
from tests.model_plugins.engine import PHI

ARRAYS = dict(np.load(PHI / "reference_deterministic.npz"))


@pytest.fixture(scope="module")
def facts() -> CheckpointFacts:
    return checkpoint_facts(PHI)


def read(folder: Path, facts: CheckpointFacts, arrays: dict[str, Any]) -> Reference:
    np.savez(folder / "reference.npz", **arrays)
    return read_reference(folder / "reference.npz", facts)


def test_each_prompt_is_a_case(tmp_path: Path, facts: CheckpointFacts) -> None:
    reference = read(tmp_path, facts, ARRAYS)
    image, text = reference.cases
    assert (image.prefix, image.size, image.steps, len(image.token_ids)) == ("", 58, 12, 43)
    assert (text.prefix, text.size, text.steps, text.pixel_values) == ("text_", 11, 1, None)
    assert set(text.expected) == {"logits", "layer0_router_logits", "layer2_router_logits"}
    assert image.expected["logits"].shape == (58, 512)
    assert "final_hidden" in reference.left_out and "layer0_combine" not in reference.left_out


def test_arrays_without_a_batch_dimension(tmp_path: Path, facts: CheckpointFacts) -> None:
    squeezed = {name: np.squeeze(values) for name, values in ARRAYS.items()}
    case = read(tmp_path, facts, squeezed).cases[0]
    assert case.pixel_values is not None and case.pixel_values.shape == (1, 3, 56, 56)
    assert case.expected["logits"].shape == (58, 512)


def test_two_images(tmp_path: Path, facts: CheckpointFacts) -> None:
    prompt = {"input_ids": [[3, IMAGE, 4, IMAGE]], "pixel_values": np.zeros((2, 3, 56, 56))}
    case = read(tmp_path, facts, prompt | {"logits": np.zeros((1, 34, 512))}).cases[0]
    assert (case.size, case.description) == (34, "a prompt of 34 tokens (2 images)")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"input_ids": None, "text_input_ids": None}, "holds no input_ids"),
        ({"input_ids": np.array([[1, 2], [3, 4]])}, r"input_ids is \[2, 2\]: each array is for one prompt"),
        ({"input_ids": np.array([[600]])}, "token 600 is not in the checkpoint's vocabulary of 512"),
        ({"pixel_values": None}, "there are no pixel_values"),
        ({"pixel_values": np.zeros((1, 3, 64, 64))}, r"\[1, 3, 64, 64\]; the checkpoint's tower takes"),
        ({"is_image_token": np.zeros(60, bool)}, "is_image_token marks 0 of 60 tokens"),
        ({"logits": np.zeros((1, 57, 512))}, "logits has 57 rows, and the prompt is 58 tokens"),
        ({"logits": np.zeros((1, 58, 600))}, "logits are of 600 tokens"),
        ({"layer1_router_logits": np.zeros((58, 4))}, "layer 1 has no experts here"),
        ({"layer0_router_logits": np.zeros((58, 8))}, "is of 8 experts, and the layer has 4"),
        ({"inputs_embeds": np.zeros((58, 32))}, "inputs_embeds are 32 wide"),
        ({"greedy_ids": np.zeros(2000)}, "continuation are 2058 tokens, and the checkpoint takes 2048"),
    ],
)
def test_a_mismatch_is_refused(
    tmp_path: Path, facts: CheckpointFacts, change: dict[str, Any], complaint: str
) -> None:
    arrays = {name: values for name, values in (ARRAYS | change).items() if values is not None}
    with pytest.raises(ValueError, match=complaint):
        read(tmp_path, facts, arrays)


def test_an_empty_reference(tmp_path: Path, facts: CheckpointFacts) -> None:
    with pytest.raises(ValueError, match="holds nothing to compare"):
        read(tmp_path, facts, {"input_ids": [[1, 2]], "final_hidden": np.zeros((2, 64))})


def test_a_file_of_runs_without_a_prompt(tmp_path: Path, facts: CheckpointFacts) -> None:
    with pytest.raises(ValueError, match=r"holds no input_ids.* It holds stock_last_logits"):
        read(tmp_path, facts, {"stock_last_logits": np.zeros((16, 512))})


@pytest.mark.parametrize("content", [b"", b"not an archive", b"\x93NUMPY\x01"])
def test_a_file_that_is_not_an_archive(tmp_path: Path, facts: CheckpointFacts, content: bytes) -> None:
    (tmp_path / "reference.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"can't be read as an \.npz file"):
        read_reference(tmp_path / "reference.npz", facts)


def test_a_missing_file(tmp_path: Path, facts: CheckpointFacts) -> None:
    with pytest.raises(ValueError, match="There is no file"):
        read_reference(tmp_path / "reference.npz", facts)
