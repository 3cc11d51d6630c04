"""The progress of a calibration, in a file, so that a stopped one can resume.

Shape legend: L layers, M modalities, C candidates.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from prismoe.model_plugins.routing.policy import POLICY_MODALITIES
from prismoe.model_plugins.tools.calibrate.fits.data import (
    CalibrationData,
    Divergences,
    RoutedLayer,
    TokenSample,
)
from prismoe.model_plugins.tools.calibrate.fits.sketch import QuantileSketch

COUNTS = ("divergence_L2", "tried_divergence_C", "tokens_LM", "uses_LM", "measured_divergence")
"""The fields that are sums over prompts."""


def file_beside(destination: Path) -> Path:
    """The file with the state of a calibration that writes `destination`."""
    return destination.with_name(f"{destination.name}.recorded.npz")


@dataclass
class State:
    """The recording of the first prompts, and what was then measured under the fitted policy."""

    file: Path
    digest: str
    """Identifies the calibration's model, policy and prompts."""
    experts: Mapping[int, int]
    """The number of experts by layer."""
    layers: dict[int, RoutedLayer]
    divergence_L2: np.ndarray
    """The sums over prompts, by layer and by POLICY_MODALITIES."""
    answers: list[list[int]] = field(default_factory=list)
    """The answer to each recorded prompt."""
    sample: dict[str, list[np.ndarray]] = field(default_factory=lambda: defaultdict(list))
    candidates: str = ""
    """Identifies the routings that are tried."""
    tried: int = 0
    """The number of prompts that they were tried on."""
    tried_divergence_C: np.ndarray = field(default_factory=lambda: np.zeros(()))
    """The sum over prompts, for each candidate."""
    goal: str = ""
    """Identifies the settings that are measured."""
    measured: int = 0
    """The number of prompts that were measured."""
    tokens_LM: np.ndarray = field(default_factory=lambda: np.zeros((), dtype=np.int64))
    uses_LM: np.ndarray = field(default_factory=lambda: np.zeros((), dtype=np.int64))
    """The uses of experts under the policy."""
    measured_divergence: np.ndarray = field(default_factory=lambda: np.zeros(()))
    """The sum over prompts of the divergence from native."""

    @classmethod
    def at(cls, file: Path, digest: str, experts: Mapping[int, int]) -> "State":
        """The state in the file, or a new one.

        Raises ValueError where the file belongs to another calibration.
        """
        layers = {layer: RoutedLayer(number) for layer, number in experts.items()}
        state = cls(file, digest, experts, layers, np.zeros((len(experts), len(POLICY_MODALITIES))))
        if file.is_file():
            with np.load(file) as arrays:
                state._read(dict(arrays))
        return state

    def save(self) -> None:
        """Write the file completely or not at all."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        draft = self.file.with_name(f".{self.file.name}")
        with draft.open("wb") as content:
            np.savez(content, allow_pickle=False, **dict(self._arrays()))
        draft.replace(self.file)

    def begin_trying(self, candidates: str) -> None:
        """Start from the first prompt, unless these candidates were being tried."""
        if candidates != self.candidates:
            self.candidates, self.tried, self.tried_divergence_C = candidates, 0, np.zeros(())

    def begin_measuring(self, goal: str) -> None:
        """Start from the first prompt, unless these settings were being measured."""
        if goal != self.goal:
            self.goal, self.measured = goal, 0
            self.tokens_LM, self.uses_LM = np.zeros((), dtype=np.int64), np.zeros((), dtype=np.int64)
            self.measured_divergence = np.zeros(())

    def data(self, top_k: int, with_divergence: bool, divergences: Divergences) -> CalibrationData:
        """The data for the fits. `divergences` tries routings."""
        if self.sample:
            whole = {name: torch.from_numpy(np.concatenate(parts)) for name, parts in self.sample.items()}
            for layer, seen in self.layers.items():
                logits_NE = whole[f"{layer}_logits"]
                hidden_ND = whole.get(f"{layer}_hidden", torch.empty(len(logits_NE), 0))
                seen.sample = TokenSample(logits_NE, whole["segments"], hidden_ND)
        prompts = len(self.answers)
        by_layer = zip(self.layers, (self.divergence_L2 / prompts).tolist(), strict=True)
        divergence = {layer: dict(zip(POLICY_MODALITIES, row, strict=True)) for layer, row in by_layer}
        if not with_divergence:
            return CalibrationData(self.layers, top_k)
        return CalibrationData(self.layers, top_k, divergence, divergences)

    def _arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        yield "digest", np.array(self.digest)
        yield "candidates", np.array(self.candidates)
        yield "tried", np.array(self.tried)
        yield "goal", np.array(self.goal)
        yield "measured", np.array(self.measured)
        yield "answer_lengths", np.array([len(answer) for answer in self.answers], dtype=np.int64)
        yield "answers", np.array([token for answer in self.answers for token in answer], dtype=np.int64)
        yield from ((name, getattr(self, name)) for name in COUNTS)
        yield from ((f"sample/{name}", np.concatenate(parts)) for name, parts in self.sample.items())
        for layer, seen in self.layers.items():
            yield f"{layer}/tail_tokens", np.array(seen.tail_tokens)
            for modality, sketch in seen.sketches.items():
                yield from ((f"{layer}/{modality}/{name}", kept) for name, kept in sketch.arrays().items())

    def _read(self, arrays: Mapping[str, np.ndarray]) -> None:
        if str(arrays["digest"]) != self.digest:
            raise ValueError(
                f"{self.file} belongs to a calibration with another model, policy, pictures or questions: "
                "remove it, or name another destination."
            )
        self.candidates, self.tried = str(arrays["candidates"]), int(arrays["tried"])
        self.goal, self.measured = str(arrays["goal"]), int(arrays["measured"])
        ends = arrays["answer_lengths"].cumsum()[:-1]
        if len(arrays["answer_lengths"]):
            self.answers = [part.tolist() for part in np.split(arrays["answers"], ends)]
        for name in COUNTS:
            setattr(self, name, arrays[name])
        for name in _under("sample", arrays):
            self.sample[name] = [arrays[f"sample/{name}"]]
        for layer, seen in self.layers.items():
            seen.tail_tokens = int(arrays[f"{layer}/tail_tokens"])
            seen.sketches = {
                modality: QuantileSketch.from_arrays(
                    {
                        name: arrays[f"{layer}/{modality}/{name}"]
                        for name in _under(f"{layer}/{modality}", arrays)
                    }
                )
                for modality in POLICY_MODALITIES
            }


def _under(prefix: str, names: Mapping[str, np.ndarray]) -> Sequence[str]:
    return [name.removeprefix(f"{prefix}/") for name in names if name.startswith(f"{prefix}/")]
