"""Reads a file of reference activations: one or more runs of the authors' code, as .npz arrays.

For each prompt it holds `input_ids` (-200 for an image), `pixel_values` if there are images, and any of the
arrays that `Case.expected` may have. All names of a further prompt have the same prefix (`text_input_ids`,
`text_logits`).
"""

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prismoe.model_plugins.tools.checkpoint_facts import CheckpointFacts

IMAGE = -200
"""Marks an image in `input_ids`."""

PER_LAYER = re.compile(r"layer(\d+)_(router_logits|topk_ids|topk_weights|combine)")
PER_TOKEN = ("inputs_embeds", "logits")
PER_STEP = ("greedy_ids", "greedy_prefill_logits")


@dataclass(frozen=True)
class Case:
    """One prompt and its reference arrays. S: its tokens, including those of the images."""

    prefix: str
    token_ids: list[int]
    pixel_values: np.ndarray | None  # [images, 3, height, width]
    expected: Mapping[str, np.ndarray]  # [S, …] or [steps, …], by name without the prefix
    size: int

    @property
    def steps(self) -> int:
        """The number of tokens that the reference generates, at least one."""
        return max([1, *(len(self.expected[name]) for name in PER_STEP if name in self.expected)])

    @property
    def description(self) -> str:
        images = 0 if self.pixel_values is None else len(self.pixel_values)
        kind = "text only" if images == 0 else "1 image" if images == 1 else f"{images} images"
        return f"a prompt of {self.size} tokens ({kind})"


@dataclass(frozen=True)
class Reference:
    """The cases of a file, and its arrays that no case uses."""

    file: str
    cases: list[Case]
    left_out: list[str]


def read_reference(file: Path, facts: CheckpointFacts) -> Reference:
    """Read a reference for this checkpoint.

    Raises ValueError when it holds nothing to compare or does not fit the checkpoint.
    """
    arrays = _load(file)
    prefixes = [name.removesuffix("input_ids") for name in arrays if name.endswith("input_ids")]
    if not prefixes:
        raise ValueError(
            f"{file} holds no input_ids, so there is no prompt to run the checkpoint on. "
            f"It holds {', '.join(arrays) or 'nothing'}."
        )
    cases = [_Fit(file, prefix, facts).case(arrays) for prefix in prefixes]
    if not any(case.expected for case in cases):
        raise ValueError(
            f"{file} holds nothing to compare: neither layer{{N}}_router_logits, layer{{N}}_topk_ids, "
            f"layer{{N}}_topk_weights nor {', '.join(PER_TOKEN + PER_STEP)}."
        )
    used = {
        case.prefix + name
        for case in cases
        for name in ("input_ids", "pixel_values", "is_image_token", *case.expected)
    }
    return Reference(str(file), cases, [name for name in arrays if name not in used])


def _load(file: Path) -> dict[str, np.ndarray]:
    if not file.is_file():
        raise ValueError(f"There is no file {file}: name an .npz file of arrays.")
    try:
        with np.load(file, allow_pickle=False) as archive:
            return dict(archive)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, TypeError, AttributeError) as error:
        raise ValueError(f"{file} can't be read as an .npz file of arrays.") from error


class _Fit:
    """Turns one prompt's arrays into a `Case`. Raises ValueError where they don't fit the checkpoint."""

    def __init__(self, file: Path, prefix: str, facts: CheckpointFacts) -> None:
        self.file, self.prefix, self.facts = file, prefix, facts

    def case(self, arrays: Mapping[str, np.ndarray]) -> Case:
        own = {
            name.removeprefix(self.prefix): values
            for name, values in arrays.items()
            if name.startswith(self.prefix)
        }
        token_ids = [int(token) for token in self._drop_batch("input_ids", own["input_ids"], 1)]
        pixel_values = own.get("pixel_values")
        if pixel_values is not None:
            pixel_values = pixel_values.reshape(-1, *pixel_values.shape[-3:])
        self._check_prompt(token_ids, pixel_values)
        size = len(token_ids) + token_ids.count(IMAGE) * (self.facts.tower.tokens_per_image - 1)
        if "is_image_token" in own:
            self._check_image_positions(token_ids, size, own["is_image_token"])
        expected = {
            name: self._expected(name, values, size)
            for name, values in own.items()
            if name in PER_TOKEN + PER_STEP or PER_LAYER.fullmatch(name)
        }
        case = Case(self.prefix, token_ids, pixel_values if IMAGE in token_ids else None, expected, size)
        if size + case.steps > self.facts.decoder.positions:
            raise self._misfit(
                f"its prompt and continuation are {size + case.steps} tokens, and the checkpoint takes "
                f"{self.facts.decoder.positions}"
            )
        return case

    def _check_prompt(self, token_ids: list[int], pixel_values: np.ndarray | None) -> None:
        vocabulary = self.facts.decoder.vocabulary
        if unknown := sorted({t for t in token_ids if t != IMAGE and not 0 <= t < vocabulary}):
            raise self._misfit(f"token {unknown[0]} is not in the checkpoint's vocabulary of {vocabulary}")
        marks = token_ids.count(IMAGE)
        if marks == 0:
            return
        if pixel_values is None:
            raise self._misfit(f"its prompt has an image ({IMAGE}), but there are no pixel_values")
        side = self.facts.tower.image_size
        if pixel_values.shape != (marks, 3, side, side):
            raise self._misfit(
                f"pixel_values are {list(pixel_values.shape)}; the checkpoint's tower takes "
                f"{[marks, 3, side, side]}"
            )

    def _check_image_positions(self, token_ids: list[int], size: int, is_image_token: np.ndarray) -> None:
        per_image = self.facts.tower.tokens_per_image
        expected = [flag for t in token_ids for flag in ([True] * per_image if t == IMAGE else [False])]
        actual = is_image_token.reshape(-1)
        if len(actual) != size or actual.astype(bool).tolist() != expected:
            raise self._misfit(
                f"is_image_token marks {int(actual.sum())} of {len(actual)} tokens, and in this checkpoint "
                f"an image becomes {per_image} tokens, {size} in all"
            )

    def _expected(self, name: str, values: np.ndarray, size: int) -> np.ndarray:
        values = self._drop_batch(name, values, 1 if name == "greedy_ids" else 2)
        if name not in PER_STEP and len(values) != size:
            raise self._misfit(
                f"{self.prefix}{name} has {len(values)} rows, and the prompt is {size} tokens in this "
                "checkpoint"
            )
        width = values.shape[-1]
        if name.endswith("logits") and "router" not in name and width > self.facts.decoder.vocabulary:
            raise self._misfit(
                f"{self.prefix}{name} are of {width} tokens; the checkpoint's vocabulary has "
                f"{self.facts.decoder.vocabulary}"
            )
        if name == "inputs_embeds" and width != self.facts.decoder.hidden_size:
            raise self._misfit(
                f"{self.prefix}{name} are {width} wide, the checkpoint's decoder "
                f"{self.facts.decoder.hidden_size}"
            )
        if match := PER_LAYER.fullmatch(name):
            self._check_layer(int(match[1]), match[2], width)
        return values

    def _check_layer(self, layer: int, kind: str, width: int) -> None:
        experts = self.facts.experts.by_layer.get(layer)
        if experts is None:
            raise self._misfit(
                f"it has {self.prefix}layer{layer}_{kind}, but layer {layer} has no experts here"
            )
        if kind in ("router_logits", "combine") and width != experts:
            raise self._misfit(
                f"{self.prefix}layer{layer}_{kind} is of {width} experts, and the layer has {experts}"
            )

    def _drop_batch(self, name: str, values: np.ndarray, dimensions: int) -> np.ndarray:
        batch, shape = values.shape[: values.ndim - dimensions], values.shape[values.ndim - dimensions :]
        if values.ndim < dimensions or any(length != 1 for length in batch):
            raise self._misfit(
                f"{self.prefix}{name} is {list(values.shape)}: each array is for one prompt, "
                "without or with a batch dimension of 1"
            )
        return values.reshape(shape)

    def _misfit(self, what: str) -> ValueError:
        return ValueError(f"{self.file} does not fit this checkpoint: {what}.")
