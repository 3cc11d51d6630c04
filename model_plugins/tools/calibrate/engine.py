"""Runs a checkpoint on calibration prompts, and records what its routers see."""

import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from tqdm import tqdm
from vllm import SamplingParams
from vllm.v1.engine.llm_engine import LLMEngine

from prismoe.model_plugins.routing.policy import POLICY_MODALITIES
from prismoe.model_plugins.tools.calibrate.prompts import CalibrationPrompt
from prismoe.model_plugins.tools.calibrate.router_recording import CalibrationData, RouterRecording
from prismoe.model_plugins.tools.checkpoint_facts import CheckpointFacts
from prismoe.model_plugins.tools.small_engine import engine_prompt, small_engine

ANSWER_LIMIT = 16  # tokens
HIDDEN_TOKENS = 32_768
"""How many tokens' hidden states are kept of each layer, which bounds the memory they take."""


@contextmanager
def recorded_routers(
    facts: CheckpointFacts, prompts: Sequence[CalibrationPrompt], with_divergence: bool, terminal: TextIO
) -> Iterator[CalibrationData]:
    """Let the checkpoint answer, as it routes now, and record its routers over prompts and answers.

    The engine runs until the block ends.

    `with_divergence` runs each request again without the experts of each layer and modality, one after the
    other. Progress is shown on `terminal`.

    Raises ValueError with a sentence for a checkpoint whose routers have no logit for each expert.
    """
    longest = max(len(prompt.token_ids) for prompt in prompts) + facts.tower.tokens_per_image
    with small_engine(facts, "auto", None, longest + ANSWER_LIMIT, images=1) as engine:
        yield _Recording(engine, facts, prompts, terminal).data(with_divergence)


class _Recording:
    def __init__(
        self,
        engine: LLMEngine,
        facts: CheckpointFacts,
        prompts: Sequence[CalibrationPrompt],
        terminal: TextIO,
    ) -> None:
        self._engine, self._facts, self._prompts, self._terminal = engine, facts, prompts, terminal
        self._answers: list[list[int]] = []
        self._runs = 0

    def data(self, with_divergence: bool) -> CalibrationData:
        experts = self._facts.experts
        self._rpc("prismoe_start_calibration")
        parts: dict[str, list[np.ndarray]] = defaultdict(list)
        divergence = {layer: dict.fromkeys(POLICY_MODALITIES, 0.0) for layer in experts.by_layer}
        tokens_before = 0
        for number, prompt in enumerate(tqdm(self._prompts, desc="Pictures", file=self._terminal)):
            answer = self._run(prompt, [], ANSWER_LIMIT)[:-1]  # Nothing reads the last token.
            self._answers.append(answer)
            self._run(prompt, answer, 1)
            rows = self._rows("prismoe_save_routers", max(1, HIDDEN_TOKENS // len(self._prompts)))
            rows["segments"] = np.where(rows["segments"] >= 0, number, rows["segments"])
            rows["sample"] = rows["sample"] + tokens_before
            tokens_before += len(rows["segments"])
            for name, values in rows.items():
                parts[name].append(values)
            if with_divergence:
                self._add_divergence(divergence, prompt, answer)
        whole = {name: torch.from_numpy(np.concatenate(values)) for name, values in parts.items()}
        return CalibrationData(
            {layer: self._layer(layer, whole) for layer in experts.by_layer},
            experts.top_k,
            {
                layer: {modality: total / len(self._prompts) for modality, total in by_modality.items()}
                for layer, by_modality in divergence.items()
            }
            if with_divergence
            else {},
            self._divergences,
        )

    def _layer(self, layer: int, whole: Mapping[str, torch.Tensor]) -> RouterRecording:
        logits_TE = whole[f"{layer}_logits"]
        if logits_TE.shape[1] != self._facts.experts.by_layer[layer]:
            raise ValueError(
                f"Layer {layer} of {self._facts.model} routes without a logit for each expert, and "
                "calibration starts from those: calibrate the checkpoint that it was made from."
            )
        return RouterRecording(logits_TE, whole["segments"], whole[f"{layer}_hidden"], whole["sample"])

    def _add_divergence(
        self, divergence: Mapping[int, dict[str, float]], prompt: CalibrationPrompt, answer: list[int]
    ) -> None:
        """Add the mean over the answer's tokens of KL(as it is ‖ deprived)."""
        as_it_is = self._log_probs(len(answer) + 1)
        for layer, modality in self._cases():
            self._rpc("prismoe_deprive", layer, modality)
            self._run(prompt, answer, 1)
            divergence[layer][modality] += _divergence(as_it_is, self._log_probs(len(answer) + 1))
        self._rpc("prismoe_deprive", -1, "")

    def _divergences(self, routings: Sequence[Mapping[str, Any]]) -> list[float]:
        """The mean over prompts, and the answers' tokens, of KL(as it is ‖ routed so)."""
        totals = [0.0] * len(routings)
        prompts = tqdm(self._prompts, desc="Thresholds", file=self._terminal)
        for prompt, answer in zip(prompts, self._answers, strict=True):
            self._run(prompt, answer, 1)
            as_it_is = self._log_probs(len(answer) + 1)
            for number, routing in enumerate(routings):
                self._rpc("prismoe_try_routing", dict(routing), self._facts.experts.top_k)
                self._run(prompt, answer, 1)
                totals[number] += _divergence(as_it_is, self._log_probs(len(answer) + 1))
            self._rpc("prismoe_try_routing", None, 0)
        return [total / len(self._prompts) for total in totals]

    def _cases(self) -> Iterator[tuple[int, str]]:
        return ((layer, modality) for layer in self._facts.experts.by_layer for modality in POLICY_MODALITIES)

    def _run(self, prompt: CalibrationPrompt, answer: list[int], tokens: int) -> list[int]:
        """Let the engine go on from prompt and answer; its greedy tokens, at most so many."""
        self._runs += 1
        sampling = SamplingParams(temperature=0, max_tokens=tokens, detokenize=False, ignore_eos=tokens == 1)
        token_ids = [*prompt.token_ids, *answer]
        request = engine_prompt(self._facts, token_ids, prompt.pixel_values, prompt.name)
        self._engine.add_request(str(self._runs), request, sampling)
        outputs: list[Any] = []
        while self._engine.has_unfinished_requests():
            outputs += self._engine.step()
        return list(outputs[-1].outputs[0].token_ids)

    def _log_probs(self, tokens: int) -> np.ndarray:
        return self._rows("prismoe_save_log_probs", tokens)["log_probs"].astype(np.float64)

    def _rows(self, method: str, number: int) -> dict[str, np.ndarray]:
        with tempfile.TemporaryDirectory(prefix="prismoe-") as folder:
            file = Path(folder) / "rows.npz"
            self._rpc(method, str(file), number)
            with np.load(file) as rows:
                return dict(rows)

    def _rpc(self, method: str, *arguments: int | str | dict[str, Any] | None) -> None:
        self._engine.collective_rpc(method, args=arguments)


def _divergence(as_it_is_TV: np.ndarray, changed_TV: np.ndarray) -> float:
    """The mean KL divergence over tokens, of log-probabilities."""
    return float((np.exp(as_it_is_TV) * (as_it_is_TV - changed_TV)).sum(axis=-1).mean())
