"""Every policy in vLLM, in one model with a policy for each layer, compared with plain computation."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from vllm import LLM

from prismoe.model_plugins.routing.request_policy import RequestPolicy
from tests.model_plugins.engine import engine, greedy, prompt_logits, start_recording, take_recording
from tests.model_plugins.engines.test_families import REQUESTS, as_prompt, pixel_values, tokens
from tests.model_plugins.plain_moe_llava import PlainMoELLaVA, Trace
from tests.model_plugins.routing.routing_steps import BY_MODALITY, CASES, make
from tests.model_plugins.tiny_checkpoints import HIDDEN, MOE, make_checkpoint

EXPERTS, NEW_TOKENS = 6, 4
ROUTERS = [
    "ltdr with one expert for heads",
    "gmm",
    "modality added",
    "modality behind",
    "modality bias",
    "uneven groups",
    "equiroute",
    "top_any",
    "cosine",
    "bias of sigmoids",
    "fine experts",
    "two thresholds",
    "entropy within bounds",
    "ltdr by threshold",
    "topk",
    "task",
    "cluster",
    "instruction",
    "ltdr over the request",
    "equiroute with a reserved slot",
    "a gate for each modality",
]
"""The routing settings by layer."""

PARAMETERS = [
    (layer, name)
    for layer, case in enumerate(ROUTERS)
    for name in make(CASES[case]).parameters(HIDDEN, EXPERTS)
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    layers = len(ROUTERS)
    moe = {"moe_layers_idx": [*range(layers)], "num_experts": [EXPERTS] * layers, "expert_width": 32}
    routing = {
        "policy": "topk",
        "layers": {str(layer): CASES[case] for layer, case in enumerate(ROUTERS)},
    }
    folder = tmp_path_factory.mktemp("routers")
    return make_checkpoint(
        folder, "stablelm", moe=MOE | moe, num_hidden_layers=layers, prismoe_routing=routing
    )


@pytest.fixture(scope="module")
def llm(checkpoint: Path) -> Iterator[LLM]:
    with engine(checkpoint, limit_mm_per_prompt={"image": 2}, max_num_seqs=8) as llm:
        llm.apply_model(start_recording)
        yield llm


@pytest.fixture(scope="module")
def plain(checkpoint: Path) -> PlainMoELLaVA:
    return PlainMoELLaVA(checkpoint)


def trace_of(plain: PlainMoELLaVA, checkpoint: Path, llm: LLM, request: Any, more: list[int]) -> Trace:
    ids = [*tokens(llm, request[0]), *more]
    return plain(ids, pixel_values(plain, checkpoint, request[1]), answer=len(more))


def run(llm: LLM, request: Any) -> np.ndarray:
    (output,) = llm.generate(as_prompt(request), greedy(1), use_tqdm=False)
    return prompt_logits(output)


@pytest.mark.parametrize("request_", REQUESTS, ids=["one image", "two images", "text"])
def test_a_request_alone(llm: LLM, plain: PlainMoELLaVA, checkpoint: Path, request_: Any) -> None:
    llm.apply_model(take_recording)
    actual = run(llm, request_)
    recording = llm.apply_model(take_recording)[0]
    trace = trace_of(plain, checkpoint, llm, request_, [])
    np.testing.assert_allclose(actual, trace.logits, atol=1e-3)
    assert list(trace.pairs) == [*range(len(ROUTERS))]
    for layer, tokens_of_layer in trace.pairs.items():
        experts, weights = (recording[layer][name][0] for name in ("experts", "weights"))
        for token, pairs in enumerate(tokens_of_layer):
            assert experts[token, : len(pairs)].tolist() == [expert for expert, _ in pairs]
            np.testing.assert_allclose(weights[token, : len(pairs)], [w for _, w in pairs], atol=1e-4)
            assert not weights[token, len(pairs) :].any()


def test_a_mixed_batch_of_8(llm: LLM, plain: PlainMoELLaVA, checkpoint: Path) -> None:
    batch = [REQUESTS[index % 3] for index in range(8)]
    outputs = llm.generate([as_prompt(request) for request in batch], greedy(NEW_TOKENS), use_tqdm=False)
    for request, output in zip(batch, outputs, strict=True):
        answer = list(output.outputs[0].token_ids)
        trace = trace_of(plain, checkpoint, llm, request, answer[:-1])
        split = len(trace.logits) - NEW_TOKENS + 1
        np.testing.assert_allclose(prompt_logits(output), trace.logits[:split], atol=1e-3)
        assert answer == trace.logits[split - 1 :].argmax(-1).tolist()


def test_the_load_counts_each_use_of_an_expert(llm: LLM, plain: PlainMoELLaVA, checkpoint: Path) -> None:
    llm.reset_prefix_cache()
    llm.collective_rpc("prismoe_reset_expert_load")
    run(llm, REQUESTS[0])
    load = llm.collective_rpc("prismoe_expert_load")[0]
    trace = trace_of(plain, checkpoint, llm, REQUESTS[0], [])
    expected = np.zeros((len(ROUTERS), 2, EXPERTS), dtype=int)
    for layer, tokens_of_layer in trace.pairs.items():
        for segment, pairs in zip(plain.segments, tokens_of_layer, strict=True):
            for expert, _ in pairs:
                expected[layer, int(segment >= 0), expert] += 1
    assert load["expert_tokens"] == expected.tolist()


def test_the_policies_in_force_are_reported_by_layer(llm: LLM) -> None:
    layers = llm.collective_rpc("prismoe_routing")[0]["layers"]
    assert [layer["policy"] for layer in layers] == [make(CASES[case]).model_dump() for case in ROUTERS]
    assert layers[0]["sources"]["head_experts"] == "checkpoint"
    assert layers[0]["sources"]["text_experts"] == "default"


VISION_SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("ltdr with one expert for heads", {"tail_experts": 4}),
    ("ltdr with one expert for heads", {"head_experts": 2}),
    ("ltdr with one expert for heads", {"selection": "head"}),
    ("ltdr with one expert for heads", {"threshold": 0.001}),
    ("ltdr by threshold", {"threshold": 0.0}),
    ("uneven groups", {"vision_experts": 1}),
    ("two thresholds", {"vision_threshold": 0.0}),
    ("two thresholds", {"vision_importance": 0.2}),
]
"""Changes that only affect vision."""
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("uneven groups", {"text_experts": 2}),
    ("uneven groups", {"norm_topk_prob": True}),
    ("two thresholds", {"text_threshold": 0.9}),
    ("two thresholds", {"text_threshold": 0.4, "text_importance": 0.5}),
    ("bias of sigmoids", {"score": "softmax"}),
    ("entropy within bounds", {"max_experts": 2}),
    ("entropy within bounds", {"low": 0.79}),
    ("task", {"default_task": 1}),
    *(
        (case, {"top_k": 1})
        for case in ("topk", "modality added", "equiroute", "cosine", "task", "cluster", "instruction")
    ),
    *((case, {"norm_topk_prob": False}) for case in ("topk", "equiroute", "cosine", "instruction")),
    ("fine experts", {"top_k": 1}),
    ("bias of sigmoids", {"norm_topk_prob": True}),
]
"""Changes that affect both."""


def route_by(model: Any, layer: int, settings: dict[str, Any]) -> None:
    """Route a layer by other settings, which don't change the shapes of its tensors."""
    policy, by_request = make(settings), model.routing.requests
    router = model.model.layers[layer].mlp.experts.router
    router.policy = policy
    if isinstance(policy, RequestPolicy):
        index = [*by_request._experts_by_layer].index(layer)
        by_request._layers[index] = by_request._layers[index]._replace(policy=policy)


@pytest.mark.parametrize(("case", "change"), VISION_SETTINGS + SETTINGS)
def test_a_setting_changes_images_and_visions_own_settings_leave_text_alone(
    llm: LLM, case: str, change: dict[str, Any]
) -> None:
    image, _, text = REQUESTS
    layer = ROUTERS.index(case)
    image_before, text_before = run(llm, image), run(llm, text)
    llm.apply_model(partial(route_by, layer=layer, settings=CASES[case] | change))
    try:
        assert not np.array_equal(run(llm, image), image_before)
        if (case, change) in VISION_SETTINGS:
            np.testing.assert_array_equal(run(llm, text), text_before)
    finally:
        llm.apply_model(partial(route_by, layer=layer, settings=CASES[case]))


def flip(model: Any, layer: int, name: str) -> None:
    """Change the sign of a router's parameter, or of its vision row if there is one for each modality."""
    parameter: torch.Tensor = model.model.layers[layer].mlp.router[name]
    (parameter[1] if name in BY_MODALITY else parameter).data.neg_()


@pytest.mark.parametrize(("layer", "name"), PARAMETERS)
def test_a_parameter_changes_images_and_visions_own_row_leaves_text_alone(
    llm: LLM, layer: int, name: str
) -> None:
    image, _, text = REQUESTS
    llm.reset_prefix_cache()
    image_before, text_before = run(llm, image), run(llm, text)
    llm.apply_model(partial(flip, layer=layer, name=name))
    llm.reset_prefix_cache()
    try:
        assert not np.array_equal(run(llm, image), image_before)
        if name in BY_MODALITY:
            np.testing.assert_array_equal(run(llm, text), text_before)
    finally:
        llm.apply_model(partial(flip, layer=layer, name=name))
