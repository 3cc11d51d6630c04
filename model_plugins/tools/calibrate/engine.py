"""The engine for calibration: eager, one request at a time, watched."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image
from vllm import LLM, SamplingParams

from prismoe.model_plugins.recording import peak_memory
from prismoe.model_plugins.recording.peak_memory import PeakMemory
from prismoe.model_plugins.tools.chat_engine import chat_about
from prismoe.model_plugins.vllm_seams.front.chat_prompts import engine_prompt

ANSWER_LIMIT = 16  # tokens
MIB = 2**20


class CalibrationEngine:
    """Runs one prompt at a time. No answer contains a token of `banned`."""

    def __init__(self, llm: LLM, banned: Sequence[int]) -> None:
        self._llm = llm
        self._banned = dict.fromkeys(banned, -100.0)
        self._runs = 0
        self._serving = 0, 0

    def prompt(self, picture: Image, question: str) -> Any:
        """The engine's prompt for a picture and a question; prepared once for all runs."""
        return engine_prompt(self._llm, chat_about(picture, question))

    def answer(self, prompt: Any) -> list[int]:
        """The greedy answer without its last token, which nothing reads."""
        return self._run(prompt, [], ANSWER_LIMIT)[:-1]

    def compute(self, prompt: Any, answer: Sequence[int]) -> None:
        """Run prompt and answer as one prefill."""
        self._run(prompt, answer, 1)

    def log_probs(self, prompt: Any, answer: Sequence[int]) -> np.ndarray:
        """Log-probabilities of the answer's tokens and of the next one, `[len(answer) + 1, vocabulary]`."""
        self.compute(prompt, answer)
        return self.rows("prismoe_save_log_probs", len(answer) + 1)["log_probs"].astype(np.float64)

    def rows(self, method: str, number: int) -> dict[str, np.ndarray]:
        """Call a method that writes arrays to a file in the worker, and return the arrays."""
        with tempfile.TemporaryDirectory(prefix="prismoe-") as folder:
            file = Path(folder) / "rows.npz"
            self.call(method, str(file), number)
            with np.load(file) as rows:
                return dict(rows)

    def call(self, method: str, *arguments: Any, **named: Any) -> Any:
        """Call a method in all workers, and return rank 0's result."""
        return self._llm.collective_rpc(method, args=arguments, kwargs=named)[0]

    def watch_memory(self, prompt: Any) -> None:
        """Measure the memory that serving a prompt needs."""
        peak_memory.begin()
        self._llm.collective_rpc("prismoe_watch_memory")
        self.answer(prompt)
        self._serving = self._peak_memory()

    def memory_over_serving(self) -> str:
        """A sentence on the peak memory since `watch_memory`, over that of serving."""
        host, device = (
            (peak - serving) / MIB for peak, serving in zip(self._peak_memory(), self._serving, strict=True)
        )
        return f"Peak memory over serving: {host:,.1f} MiB of the host, {device:,.1f} MiB of the devices."

    def _peak_memory(self) -> tuple[int, int]:
        """The peak memory in bytes of this process and all workers: on the host, and on their devices."""
        peaks = [PeakMemory(*one) for one in self._llm.collective_rpc("prismoe_peak_memory")]
        if os.getpid() not in {one.process for one in peaks}:
            peaks.append(peak_memory.peak())
        return sum(one.host for one in peaks), sum(one.device for one in peaks)

    def _run(self, prompt: Any, answer: Sequence[int], tokens: int) -> list[int]:
        """Generate up to `tokens` greedy tokens after prompt and answer."""
        self._runs += 1
        sampling = SamplingParams(
            temperature=0,
            max_tokens=tokens,
            detokenize=False,
            ignore_eos=tokens == 1,
            logit_bias=self._banned or None,
        )
        request = {**prompt, "prompt_token_ids": [*prompt["prompt_token_ids"], *answer]}
        engine: Any = self._llm.llm_engine
        engine.add_request(str(self._runs), request, sampling)
        outputs: list[Any] = []
        while engine.has_unfinished_requests():
            outputs += engine.step()
        return list(outputs[-1].outputs[0].token_ids)


def special_tokens(llm: LLM) -> list[int]:
    """The special tokens that mark media or roles, which no text answer contains."""
    tokenizer: Any = llm.get_tokenizer()
    added: Mapping[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
    return [id for id, token in added.items() if token.special and id != tokenizer.eos_token_id]
