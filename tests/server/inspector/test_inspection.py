"""Inspections of a request, compared with the request and its routers' inputs."""

import json
import time
from typing import Any

import httpx
import numpy as np
import pytest

from prismoe.model_plugins.files.bundled import bundled_checkpoint
from tests.kernels.reference import experts as reference_experts
from tests.kernels.reference import probabilities
from tests.kernels.reference import tail as reference_tail
from tests.server.conftest import image_part, user

TOP_K, TAIL_EXPERTS, EXPERTS = 2, 4, 4
SIDE, PATCHES = 8, 64

pytestmark = pytest.mark.usefixtures("server")


def ask(http: httpx.Client, messages: object, **options: object) -> httpx.Response:
    body = {"model": "prismoji", "messages": messages, "max_tokens": 6, "temperature": 0, **options}
    return http.post("/v1/routing/inspect", json=body)


def inspected(http: httpx.Client, messages: object, **options: object) -> dict[str, Any]:
    answer: dict[str, Any] = ask(http, messages, **options).raise_for_status().json()
    return answer


def load(http: httpx.Client) -> dict[str, Any]:
    time.sleep(0.5)  # The server answers with a reading that is up to half a second old.
    answer: dict[str, Any] = http.get("/v1/routing/load").raise_for_status().json()
    return answer


@pytest.fixture
def question(picture: bytes, other_picture: bytes) -> object:
    return user(image_part(picture), "What is this?", image_part(other_picture), "And this?")


def test_every_token_is_listed_once_in_its_place(http: httpx.Client, question: object) -> None:
    answer = inspected(http, question)
    routing, usage = answer["routing"], answer["completion"]["usage"]
    tokens = routing["tokens"]
    assert [token["position"] for token in tokens] == list(
        range(usage["prompt_tokens"] + usage["completion_tokens"] - 1)
    )
    assert routing["prompt_tokens"] == usage["prompt_tokens"] and routing["left_out"] == 0
    assert routing["media"] == [{"modality": "image", "frames": 1, "rows": SIDE, "columns": SIDE}] * 2
    for segment in (0, 1):
        image = [token for token in tokens if token["segment"] == segment]
        assert [(token["frame"], token["row"], token["column"]) for token in image] == [
            (0, *divmod(patch, SIDE)) for patch in range(PATCHES)
        ]
        assert {(token["modality"], token["text"]) for token in image} == {("image", None)}
    text = [token for token in tokens if token["modality"] == "text"]
    assert len(text) == len(tokens) - 2 * PATCHES
    message = "".join(token["text"] for token in text)
    assert "What is this?" in message and "And this?" in message
    assert message.endswith(answer["completion"]["choices"][0]["message"]["content"])
    for layer in routing["layers"]:
        assert {len(layer[field]) for field in ("experts", "weights", "tail")} == {len(tokens)}


def test_tail_tokens_and_experts_are_those_of_a_plain_recomputation(
    http: httpx.Client, question: object
) -> None:
    routing = inspected(http, question, router_logits=True)["routing"]
    segments = [-1 if token["segment"] is None else token["segment"] for token in routing["tokens"]]
    assert [layer["layer"] for layer in routing["layers"]] == [0, 2]
    for layer in routing["layers"]:
        probs = probabilities(np.array(layer["router_logits"]))
        tail = reference_tail(probs, segments)
        assert layer["tail"] == tail and 0 < sum(tail) < 2 * PATCHES
        counts = [TAIL_EXPERTS if is_tail else TOP_K for is_tail in tail]
        for reported, weights, expected in zip(
            layer["experts"], layer["weights"], reference_experts(probs, counts, True), strict=True
        ):
            assert reported == list(expected)
            np.testing.assert_allclose(weights, list(expected.values()), rtol=1e-5)


def test_an_inspection_is_counted_like_any_request(http: httpx.Client, question: object) -> None:
    inspected(http, question)  # so that a prefix cache would have it
    before = load(http)
    layers = inspected(http, question)["routing"]["layers"]
    after = load(http)
    for index, layer in enumerate(layers):
        counted = np.array(after["expert_tokens"][index]) - before["expert_tokens"][index]
        reported = np.bincount(np.concatenate(layer["experts"]), minlength=EXPERTS)
        assert counted.sum(axis=0).tolist() == reported.tolist()
        assert after["tail_tokens"][index] - before["tail_tokens"][index] == sum(layer["tail"])


def test_the_routers_statistics_are_summed(http: httpx.Client, question: object) -> None:
    """Entropy, RPV and near ties of one request, recomputed from its logits."""
    inspected(http, question)
    before = load(http)
    routing = inspected(http, question, router_logits=True)["routing"]
    after = load(http)
    is_vision = np.array([token["modality"] == "image" for token in routing["tokens"]])
    for index, layer in enumerate(routing["layers"]):
        probs = probabilities(np.array(layer["router_logits"]))
        best = np.pad(-np.sort(-probs, axis=1), ((0, 0), (0, 1)), constant_values=-np.inf)
        row, used = np.arange(len(best)), np.array([len(experts) for experts in layer["experts"]])
        by_token = {
            "scored_tokens": np.ones(len(best)),
            "near_ties": best[row, used - 1] - best[row, used] < 0.01,
            "routing_entropy": -(probs * np.log(probs)).sum(axis=1),
            "routing_variance": probs.var(axis=1),
        }
        for name, values in by_token.items():
            counted = np.array(after[name][index]) - before[name][index]
            expected = [values[~is_vision].sum(), values[is_vision].sum()]
            np.testing.assert_allclose(counted, expected, rtol=1e-4, atol=1e-4, err_msg=name)


def test_the_answer_streams_and_the_routing_comes_last(http: httpx.Client, question: object) -> None:
    whole = inspected(http, question)
    text = ask(http, question, stream=True).raise_for_status().text
    *chunks, routing, done = [event for event in text.split("\n\n") if event]
    message = [json.loads(chunk.removeprefix("data: ")) for chunk in chunks]
    answer = "".join(
        choice["delta"].get("content", "") for chunk in message for choice in chunk.get("choices", ())
    )
    assert answer == whole["completion"]["choices"][0]["message"]["content"]
    assert json.loads(routing.removeprefix("event: routing\ndata: ")) == whole["routing"]
    assert done == "data: [DONE]"


def test_requests_beside_it_run_and_are_not_listed(http: httpx.Client, question: object) -> None:
    alone = inspected(http, question)["routing"]
    body = {"model": "prismoji", "messages": user("Tell me a story."), "max_tokens": 200, "stream": True}
    with http.stream("POST", "/v1/chat/completions", json={**body, "ignore_eos": True}) as other:
        lines = other.iter_lines()
        next(lines)
        together = inspected(http, question)["routing"]
        assert sum(1 for _ in lines) > 6  # it was still answered
    assert [layer["experts"] for layer in together["layers"]] == [
        layer["experts"] for layer in alone["layers"]
    ]


def test_a_request_sets_numbers_of_experts(http: httpx.Client, picture: bytes) -> None:
    routing = {"routing": {"tail_experts": 3, "head_experts": 1}}
    answer = inspected(http, user(image_part(picture), "What is this?"), mm_processor_kwargs=routing)
    tokens = answer["routing"]["tokens"]
    for layer in answer["routing"]["layers"]:
        for token, used, tail in zip(tokens, layer["experts"], layer["tail"], strict=True):
            assert len(used) == (TOP_K if token["modality"] == "text" else 3 if tail else 1)


def test_text_alone(http: httpx.Client) -> None:
    routing = inspected(http, user("Hello"))["routing"]
    assert {token["modality"] for token in routing["tokens"]} == {"text"}
    assert not any(any(layer["tail"]) for layer in routing["layers"])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"n": 2}, "has only one answer"),
        ({"max_tokens": 513}, "max_tokens must be at most 512."),
        ({"model": "another"}, "another"),
        ({"messages": [{"role": "wizard", "content": "Hi"}]}, "The roles are"),
        ({"mm_processor_kwargs": {"routing": {"tail_experts": 9}}}, "allows up to 4"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_impossible_inspections_are_refused_with_a_message(
    http: httpx.Client, picture: bytes, options: dict[str, object], sentence: str, stream: bool
) -> None:
    question = user(image_part(picture), "What is this?")
    answer = ask(http, **{"messages": question, "stream": stream, **options})
    assert 400 <= answer.status_code < 500, answer.text
    assert sentence in answer.json()["error"]["message"]
    assert inspected(http, question)["routing"]["tokens"]


def test_a_client_that_leaves_makes_room_for_the_next(http: httpx.Client, question: object) -> None:
    body = {"model": "prismoji", "messages": question, "max_tokens": 400, "ignore_eos": True, "stream": True}
    for _ in range(3):
        with http.stream("POST", "/v1/routing/inspect", json=body) as answer:
            next(answer.iter_lines())
    assert inspected(http, question)["routing"]["left_out"] == 0


def test_the_supported_inspections(http: httpx.Client) -> None:
    facts = http.get("/v1/routing/inspect").raise_for_status().json()
    tower = json.loads((bundled_checkpoint() / "image_tower" / "config.json").read_text())
    assert facts["grid"]["rows"] == facts["grid"]["columns"] == tower["image_size"] // tower["patch_size"]
    assert facts["grid"]["tokens"] == PATCHES and facts["grid"]["fit"] == "pad"
    assert facts["refusal"] is None and facts["request_experts"] == EXPERTS and facts["router_logits"]
