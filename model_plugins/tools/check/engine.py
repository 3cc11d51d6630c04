"""The engine for `prismoe check`: eager, one request at a time, recorded."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from vllm import SamplingParams
from vllm.config.model import ModelDType
from vllm.v1.engine.llm_engine import LLMEngine

from prismoe.model_plugins.tools.check.reference import IMAGE, Case
from prismoe.model_plugins.tools.checkpoint_facts import CheckpointFacts
from prismoe.model_plugins.tools.precise_float32 import precise_float32
from prismoe.model_plugins.tools.small_engine import engine_prompt, small_engine


@dataclass(frozen=True)
class Run:
    """The engine's results for one case: rows [S + steps - 1, …] by name, and the greedy tokens."""

    rows: Mapping[str, np.ndarray]
    greedy_ids: list[int]


class CheckEngine:
    """An engine with a loaded checkpoint."""

    def __init__(self, engine: LLMEngine, facts: CheckpointFacts) -> None:
        self._engine = engine
        self._facts = facts

    def routing(self) -> Mapping[str, Any]:
        """The routing in force, as `prismoe_routing` gives it."""
        return self._rpc("prismoe_routing")

    def unused_tensors(self) -> Sequence[str]:
        """The checkpoint's tensors that the model does not use."""
        return self._rpc("prismoe_unused_tensors")

    def run(self, cases: Sequence[Case]) -> list[Run]:
        """Run each case separately."""
        self._rpc("prismoe_start_recording")
        return [self._run(case) for case in cases]

    def _run(self, case: Case) -> Run:
        sampling = SamplingParams(temperature=0, max_tokens=case.steps, ignore_eos=True, detokenize=False)
        prompt = engine_prompt(self._facts, case.token_ids, case.pixel_values, case.prefix)
        self._engine.add_request(case.prefix, prompt, sampling)
        outputs: list[Any] = []
        while self._engine.has_unfinished_requests():
            outputs += self._engine.step()
        with tempfile.TemporaryDirectory(prefix="prismoe-") as folder:
            file = Path(folder) / "recording.npz"
            self._rpc("prismoe_save_recording", str(file))
            with np.load(file) as recording:
                return Run(dict(recording), list(outputs[-1].outputs[0].token_ids))

    def _rpc(self, method: str, *arguments: str) -> Any:
        return self._engine.collective_rpc(method, args=arguments)[0]


@contextmanager
def check_engine(
    facts: CheckpointFacts, dtype: ModelDType, routing: Mapping[str, Any] | None, cases: Sequence[Case] = ()
) -> Iterator[CheckEngine]:
    """Run an engine for the checkpoint, large enough for the cases, until the block ends.

    In float32 it computes without TF32, also on a GPU.
    """
    length = max([case.size + case.steps for case in cases] + [facts.tower.tokens_per_image + 1])
    images = max((case.token_ids.count(IMAGE) for case in cases), default=1)
    with precise_float32(), small_engine(facts, dtype, routing, length, images) as engine:
        yield CheckEngine(engine, facts)
