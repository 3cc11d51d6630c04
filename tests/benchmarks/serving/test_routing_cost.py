"""The benchmark of routing costs: the routings that take turns in its engine, and its arithmetic."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
from torch import nn
from vllm import SamplingParams
from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner

from prismoe.benchmarks.serving import routing_cost
from prismoe.benchmarks.serving.routing_cost import (
    WORKLOADS,
    Measurement,
    RoutingSpeed,
    measure,
    prediction,
    requests,
    speed,
    start_engine,
)
from prismoe.benchmarks.serving.swapped_routing import TOP_K, UNCOUNTED, VLLMS_OWN, routings
from prismoe.model_plugins.files.bundled import bundled_checkpoint
from prismoe.model_plugins.moe_layer.router import PolicyRouter

LTDR_4 = "ltdr, 4 experts for tail tokens"


class Seen(NamedTuple):
    """The observations in one engine."""

    answers: dict[str, list[Any]]  # greedy tokens for the same prompts, by routing
    log_probs: dict[str, list[float]]  # of these answers
    decisions: dict[str, int]  # of prismoe's routers for these answers
    left_changed: list[str]  # routings that left a layer changed
    results: dict[str, Measurement]


def run_an_engine() -> Seen:
    """Run the engine in its own process, because it pins the process to a core."""
    llm = start_engine(str(bundled_checkpoint()))
    (ways,) = llm.apply_model(routings)
    seen = Seen({}, {}, {}, [], {})
    prompts = [prompt for workload in ("pictures", "text") for prompt in requests(workload, 0, 1000)[0][:4]]
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=0)
    before = llm.apply_model(attributes)
    for name, way in ways.items():
        decide = patch.object(PolicyRouter, "decide", autospec=True, side_effect=PolicyRouter.decide)
        with way.in_force(), decide as decided:
            answers = [output.outputs[0] for output in llm.generate(prompts, params, use_tqdm=False)]
        seen.answers[name] = [answer.token_ids for answer in answers]
        seen.log_probs[name] = [float(answer.cumulative_logprob or 0) for answer in answers]
        seen.decisions[name] = decided.call_count
        if llm.apply_model(attributes) != before:
            seen.left_changed.append(name)
    with patch.object(routing_cost, "TURNS", 1):
        for workload in ("pictures", "decode, 1 request"):
            seen.results[workload] = measure(llm, workload, rounds=2)
    return seen


def attributes(model: nn.Module) -> list[dict[str, Any]]:
    """The attributes of a MoE layer's parts."""
    layers = [module for module in model.modules() if isinstance(module, MoERunner)]
    experts = [layer.routed_experts for layer in layers]
    return [dict(vars(part)) for part in (*layers, *experts, *(part.quant_method for part in experts))]


@pytest.fixture(scope="module")
def seen() -> Seen:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(run_an_engine).result()


@pytest.mark.engine
def test_vllms_own_routing_answers_like_topk_and_without_prismoes_routers(seen: Seen) -> None:
    assert seen.answers[VLLMS_OWN] == seen.answers[TOP_K] == seen.answers[UNCOUNTED]
    assert seen.log_probs[VLLMS_OWN] == pytest.approx(seen.log_probs[TOP_K], rel=1e-4)
    assert seen.log_probs[LTDR_4] != pytest.approx(seen.log_probs[TOP_K], rel=1e-2)
    assert seen.decisions[VLLMS_OWN] == 0 < seen.decisions[TOP_K] == seen.decisions[LTDR_4]
    assert not seen.left_changed


@pytest.mark.engine
def test_a_measurement_counts_what_each_routing_used(seen: Seen) -> None:
    for workload, measured in seen.results.items():
        assert all(len(way["seconds"]) == 2 and min(way["seconds"]) > 0 for way in measured.values())
        assert measured[VLLMS_OWN]["pairs"] == measured[UNCOUNTED]["pairs"] == 0 < measured[TOP_K]["pairs"]
        assert measured[VLLMS_OWN]["experts_seconds"] == 0
        assert 0 < measured[TOP_K]["experts_seconds"] < sum(measured[TOP_K]["seconds"])
        assert (measured[LTDR_4]["pairs"] > measured[TOP_K]["pairs"]) == (workload == "pictures")
    _, tokens, answer = WORKLOADS["decode, 1 request"]
    assert tokens is not None and answer is not None
    rounds = layers = experts = 2
    pairs = rounds * layers * experts * (tokens + answer - 1)
    assert seen.results["decode, 1 request"][TOP_K]["pairs"] == pairs


def test_speeds_are_relative_to_a_base_and_experts_to_top_k() -> None:
    measured = {
        VLLMS_OWN: RoutingSpeed(seconds=[2, 4, 6], experts_seconds=0, pairs=0),
        TOP_K: RoutingSpeed(seconds=[4, 8, 8], experts_seconds=5, pairs=100),
        "ltdr": RoutingSpeed(seconds=[1, 2, 2], experts_seconds=1, pairs=150),
    }
    assert speed(measured, TOP_K, VLLMS_OWN) == "0.500 (0.500-0.625)"
    assert speed(measured, "ltdr", TOP_K) == "4.000 (4.000-4.000)"
    assert prediction(measured, "ltdr") == {
        "experts' share": 0.25,
        "experts used": 1.5,
        "predicted": "0.889",
        "measured": "4.000 (4.000-4.000)",
    }


QUANTISED = SimpleNamespace()
WITHOUT_GATE = SimpleNamespace(observe_and_run=None, quant_method=SimpleNamespace(moe_kernel=None))


def moe_layer(experts: SimpleNamespace) -> MoERunner:
    layer = MoERunner.__new__(MoERunner)
    nn.Module.__init__(layer)
    layer.routed_experts = experts
    return layer


@pytest.mark.parametrize(
    ("experts", "sentence"), [([], "MoE"), ([QUANTISED], "quantised"), ([WITHOUT_GATE], "without a gate")]
)
def test_a_model_without_a_match_in_vllm_is_refused(experts: list[SimpleNamespace], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        routings(nn.ModuleList(map(moe_layer, experts)))
