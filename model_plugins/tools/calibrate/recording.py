"""Records a model's routers over prompts, and measures the effect of the fitted policy on them."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

import numpy as np
import torch
from tqdm import tqdm

from prismoe.kernels.routing import TEXT
from prismoe.model_plugins.recording.calibration import TokenValues
from prismoe.model_plugins.routing.policy import POLICY_MODALITIES
from prismoe.model_plugins.tools.calibrate.engine import ANSWER_LIMIT, CalibrationEngine
from prismoe.model_plugins.tools.calibrate.fits.sketch import CAPACITY
from prismoe.model_plugins.tools.calibrate.prompts import Pictures
from prismoe.model_plugins.tools.calibrate.state import State

SAMPLED_TOKENS = 32_768
"""The number of sampled tokens for policies that are fitted to tensors; it bounds their memory."""
MIB = 2**20


@dataclass(frozen=True)
class Prompts:
    """The prompts: each picture with the next question."""

    pictures: Pictures
    questions: Sequence[str]

    def __len__(self) -> int:
        return len(self.pictures.openers)

    def of(self, engine: CalibrationEngine, first: int) -> Iterator[Any]:
        """The engine's prompts, from the one with the number `first` on."""
        for number, opener in list(enumerate(self.pictures.openers))[first:]:
            yield engine.prompt(opener(), self.questions[number % len(self.questions)])


@dataclass(frozen=True)
class Recording:
    """What to record for each prompt."""

    values: TokenValues
    kept: int
    """The number of a token's best weights that can't be skipped."""
    with_divergence: bool
    most_tried: int
    """The most routings that are tried after the recording."""

    def runs(self, layers: int, is_measured: bool) -> int:
        """The most times that a prompt is computed."""
        deprived = 1 + layers * len(POLICY_MODALITIES) if self.with_divergence else 0
        tried = 1 + self.most_tried if self.most_tried else 0
        return 2 + deprived + tried + (3 if is_measured else 0)

    def most_bytes(self, layers: int, tokens: int) -> int:
        """The most bytes that are kept of the measures of `tokens` tokens."""
        width = 0 if self.values.measure is None else 1
        if self.values.measure == "weights":
            width = self.values.top_k - self.kept
        values = max(1, tokens * width)
        levels = 1 + max(0, math.ceil(math.log2(values / CAPACITY)))
        return layers * len(POLICY_MODALITIES) * min(values, CAPACITY * levels) * 4 if width else 0


def record(
    engine: CalibrationEngine, prompts: Prompts, recording: Recording, state: State, terminal: TextIO
) -> None:
    """Let the model answer with its current routing, and record its routers over prompts and answers.

    With the divergence, each request also runs without the experts of each layer and modality, one after the
    other. The state is saved after each prompt.
    """
    engine.call("prismoe_start_calibration", *recording.values, most_answered=ANSWER_LIMIT)
    first = len(state.answers)
    with tqdm(total=len(prompts), initial=first, desc="Pictures", file=terminal) as progress:
        for number, prompt in enumerate(prompts.of(engine, first), start=first):
            answer = engine.answer(prompt)
            engine.call("prismoe_record_request")
            engine.compute(prompt, answer)
            _add(state, engine.rows("prismoe_save_request", number), number, recording)
            if recording.with_divergence:
                state.divergence_L2 += _divergence(engine, prompt, answer, [*state.layers])
            state.answers.append(answer)
            state.save()
            progress.update()


def _add(state: State, rows: dict[str, np.ndarray], number: int, recording: Recording) -> None:
    is_vision_T, sample_N = torch.from_numpy(rows["is_vision"]), rows["sample"]
    segment_T = torch.where(is_vision_T, 0, TEXT)
    for layer, seen in state.layers.items():
        if recording.values.measure is not None:
            values_TC = torch.from_numpy(rows[f"{layer}_measure"])
            seen.add(recording.values.measure, values_TC, segment_T, recording.kept)
        for kind in ("logits", "hidden"):
            if (name := f"{layer}_{kind}") in rows:
                state.sample[name].append(rows[name])
    if recording.values.sampled:
        segment_T = torch.where(is_vision_T, number, TEXT)
        state.sample["segments"].append(segment_T.numpy()[sample_N])


def _divergence(
    engine: CalibrationEngine, prompt: Any, answer: Sequence[int], layers: Sequence[int]
) -> np.ndarray:
    """The mean divergence without the experts of each layer, for each modality, `[L, 2]`."""
    unchanged = engine.log_probs(prompt, answer)
    divergence_L2 = np.zeros((len(layers), len(POLICY_MODALITIES)))
    for place, layer in enumerate(layers):
        for column, modality in enumerate(POLICY_MODALITIES):
            engine.call("prismoe_deprive", layer, modality)
            divergence_L2[place, column] = _mean_divergence(unchanged, engine.log_probs(prompt, answer))
    engine.call("prismoe_deprive", -1, "")
    return divergence_L2


def _mean_divergence(unchanged: np.ndarray, changed: np.ndarray) -> float:
    """The mean over the answer's tokens of KL(unchanged ‖ changed), in nats."""
    return float((np.exp(unchanged) * (unchanged - changed)).sum(axis=-1).mean())


def divergences(
    engine: CalibrationEngine,
    prompts: Prompts,
    state: State,
    terminal: TextIO,
    routings: Sequence[Mapping[str, Any]],
) -> list[float]:
    """The mean divergence of the answers' tokens under each of `routings` from the model's own, in nats.

    The state is saved after each prompt.
    """
    state.begin_trying(json.dumps([*routings], sort_keys=True))
    first = state.tried
    with tqdm(total=len(prompts), initial=first, desc="Thresholds", file=terminal) as progress:
        for number, prompt in enumerate(prompts.of(engine, first), start=first):
            answer = state.answers[number]
            unchanged = engine.log_probs(prompt, answer)
            moved_C = np.zeros(len(routings))
            for place, routing in enumerate(routings):
                engine.call("prismoe_reroute", dict(routing))
                moved_C[place] = _mean_divergence(unchanged, engine.log_probs(prompt, answer))
            engine.call("prismoe_reroute", None)
            state.tried_divergence_C = state.tried_divergence_C + moved_C
            state.tried += 1
            state.save()
            progress.update()
    total_C: list[float] = (state.tried_divergence_C / len(prompts)).tolist()
    return total_C


def measure(engine: CalibrationEngine, prompts: Prompts, state: State, terminal: TextIO) -> None:
    """Count the experts that the prompts use under the policy, and the divergence of its answers from native.

    The state is saved after each prompt.
    """
    first = state.measured
    with tqdm(total=len(prompts), initial=first, desc="Measuring", file=terminal) as progress:
        for number, prompt in enumerate(prompts.of(engine, first), start=first):
            answer = state.answers[number]
            engine.call("prismoe_route_by", "native")
            native = engine.log_probs(prompt, answer)
            engine.call("prismoe_route_by", "policy")
            divergence = _mean_divergence(native, engine.log_probs(prompt, answer))
            engine.call("prismoe_reset_expert_load")
            engine.compute(prompt, [])
            load = engine.call("prismoe_expert_load")
            state.measured_divergence = state.measured_divergence + divergence
            state.tokens_LM = state.tokens_LM + np.array(load["tokens"])
            state.uses_LM = state.uses_LM + np.array(
                [[sum(uses) for uses in rows] for rows in load["expert_tokens"]]
            )
            state.measured += 1
            state.save()
            progress.update()


def print_cost(
    recording: Recording,
    prompts: int,
    tokens: int,
    layers: int,
    is_measured: bool,
    file: str,
    terminal: TextIO,
) -> None:
    """Print what calibration will cost, based on the first prompt's number of tokens."""
    runs = recording.runs(layers, is_measured)
    kept = recording.most_bytes(layers, prompts * (tokens + ANSWER_LIMIT)) / MIB
    print(
        f"{prompts} prompts of about {tokens} tokens and an answer of up to {ANSWER_LIMIT}, each computed "
        f"at most {runs} times: about {prompts * runs * (tokens + ANSWER_LIMIT):,} tokens in all. "
        f"The measured values take up to {kept:,.1f} MiB here. If this is stopped, the same command "
        f"resumes it from {file}.",
        file=terminal,
        flush=True,
    )
