"""The V2 runner gives the same answers, counts and inspections as V1, also with asynchronous scheduling."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest
from vllm import LLM, SamplingParams
from vllm.config import VllmConfig
from vllm.platforms.cpu import CpuPlatform

from prismoe.model_plugins.vllm_seams.engine.scheduler import WholeImageAsyncScheduler
from tests.model_plugins.engine import PHI, engine, greedy, logits
from tests.model_plugins.engines.test_same_everywhere import ROUTING, flat
from tests.model_plugins.engines.test_whole_requests import requests
from tests.runners import Runner

INSPECTED = "inspected"


class Seen(NamedTuple):
    """The results of an engine for the same requests."""

    runner: str  # its module
    tokens: list[list[int]]
    logits: list[np.ndarray]
    load: Mapping[str, Any]
    inspection: Mapping[str, Any]


def runner_of(worker: Any) -> str:
    """Runs in the worker: return the module of the model runner."""
    return type(worker.model_runner).__module__


def seen(runner: Runner, **options: Any) -> Seen:
    steps: dict[str, Any] = {"max_num_batched_tokens": 48, "max_num_seqs": 8}
    images: dict[str, Any] = {"limit_mm_per_prompt": {"image": 2}}
    with engine(PHI, ROUTING, runner=runner, **steps, **images, **options) as llm:
        outputs = llm.generate(requests(), asks(), use_tqdm=False)
        answers = [output.outputs[0] for output in outputs]
        load = llm.collective_rpc("prismoe_expert_load")[0]
        return Seen(
            llm.collective_rpc(runner_of)[0],
            [list(answer.token_ids) for answer in answers],
            [logits(answer.logprobs) for answer in answers],
            load,
            inspection(llm),
        )


def asks() -> list[SamplingParams]:
    """The sampling parameters of the requests, with both tasks."""
    answered = [greedy(5, with_prompt=False) for _ in requests()]
    for index, ask in enumerate(answered):
        ask.extra_args = {"task": index % 2}
    return answered


def inspection(llm: LLM) -> Mapping[str, Any]:
    """The inspection of one request while others run."""
    llm.reset_prefix_cache()
    llm.collective_rpc("prismoe_start_inspection", args=(INSPECTED, 512, True))
    names = ["first", "second", INSPECTED, "fourth", "fifth"]
    for name, request, ask in zip(names, requests(), asks(), strict=True):
        llm.llm_engine.add_request(name, request, ask)
    while llm.llm_engine.has_unfinished_requests():
        llm.llm_engine.step()
    rows: Mapping[str, Any] = llm.collective_rpc("prismoe_inspected_rows", args=(INSPECTED,))[0]
    return rows


@pytest.fixture(scope="module")
def v1() -> Seen:
    return seen("v1")


@pytest.fixture(scope="module", params=["sync", "async"])
def v2(request: pytest.FixtureRequest) -> Seen:
    if request.param == "sync":
        return seen("v2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CpuPlatform, "check_and_update_config", classmethod(check_but_stay_asynchronous))
        return seen("v2", async_scheduling=True, scheduler_cls=WholeImageAsyncScheduler)


check = CpuPlatform.check_and_update_config


def check_but_stay_asynchronous(_: type[CpuPlatform], config: VllmConfig) -> None:
    """Check the engine, but keep asynchronous scheduling, which vLLM uses only on GPUs."""
    expected = config.scheduler_config.async_scheduling
    check(config)
    config.scheduler_config.async_scheduling = expected


def test_these_are_the_two_runners(v1: Seen, v2: Seen) -> None:
    assert (v1.runner, v2.runner) == ("vllm.v1.worker.cpu_model_runner", "vllm.v1.worker.cpu.model_runner")


def test_the_answers(v1: Seen, v2: Seen) -> None:
    assert v2.tokens == v1.tokens
    for mine, theirs in zip(v2.logits, v1.logits, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-4)


def test_the_load(v1: Seen, v2: Seen) -> None:
    assert any(flat(v1.load["tail_tokens"]))
    assert v2.load["modalities"] == v1.load["modalities"] == ["text", "image"]
    for name, counts in v1.load.items():
        if name == "modalities":
            continue
        # The routing probabilities can differ in their last bits.
        accuracy = 1e-3 if name.startswith("routing_") else 0
        np.testing.assert_allclose(flat(v2.load[name]), flat(counts), rtol=accuracy, err_msg=name)


def test_the_inspection(v1: Seen, v2: Seen) -> None:
    computed = len(v1.inspection["positions"])
    assert v1.inspection["modalities"].count("image") == 32  # two images
    assert v2.inspection["positions"][:computed] == v1.inspection["positions"]
    assert v2.inspection["modalities"][:computed] == v1.inspection["modalities"]
    for mine, theirs in zip(v2.inspection["layers"], v1.inspection["layers"], strict=True):
        for name in ("experts", "tail"):
            assert mine[name][:computed] == theirs[name]
        np.testing.assert_allclose(mine["router_logits"][:computed], theirs["router_logits"], atol=1e-4)
