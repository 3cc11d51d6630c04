"""The server's expert load compared with a count by hand."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from prismoe.model_plugins.files.bundled import bundled_checkpoint
from tests.server.conftest import image_part, user

TOP_K, TAIL_EXPERTS = 2, 4


def image_tokens() -> int:
    tower = json.loads((bundled_checkpoint() / "image_tower" / "config.json").read_text())
    return int((tower["image_size"] // tower["patch_size"]) ** 2)


@dataclass
class Request:
    """A request, and the number of its pictures."""

    body: dict[str, Any]
    images: int

    def computed(self, http: httpx.Client) -> tuple[int, int]:
        """Send the requests, and count the text and vision tokens that the model has to compute."""
        answer = http.post("/v1/chat/completions", json=self.body).raise_for_status()
        if self.body.get("stream"):
            last = [line for line in answer.text.splitlines() if line.startswith("data: {")][-1]
            usage = json.loads(last.removeprefix("data: "))["usage"]
        else:
            usage = answer.json()["usage"]
        vision = self.images * image_tokens()
        # The last generated token is never computed.
        return usage["prompt_tokens"] + usage["completion_tokens"] - 1 - vision, vision


def mixed_requests(picture: bytes, other_picture: bytes) -> Iterator[Request]:
    conversations = [
        (user("What can you do?"), 0),
        (user(image_part(picture), "What is this?"), 1),
        (user(image_part(other_picture), "What is this?"), 1),
        (user(image_part(picture), image_part(other_picture), "What are these?"), 2),
        (user(*[image_part(picture)] * 8), 8),
        ([{"role": "system", "content": "Answer in a word or two."}, *user("Hello!")], 0),
    ]
    for number, (messages, images) in enumerate(conversations * 3):
        body: dict[str, Any] = {
            "model": "prismoji",
            "messages": messages,
            "max_tokens": 1 + number % 7,
            "cache_salt": str(uuid4()),  # so that every token is computed
        }
        if number % 2:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        yield Request(body, images)


def load(http: httpx.Client) -> dict[str, Any]:
    time.sleep(0.5)  # The server answers with a reading that is up to half a second old.
    answer: dict[str, Any] = http.get("/v1/routing/load").raise_for_status().json()
    return answer


@pytest.mark.parametrize("at_once", [1, 6])
def test_the_load_equals_the_count_by_hand(
    http: httpx.Client, picture: bytes, other_picture: bytes, at_once: int
) -> None:
    before = load(http)
    with ThreadPoolExecutor(at_once) as pool:
        computed = list(pool.map(lambda asked: asked.computed(http), mixed_requests(picture, other_picture)))
    after = load(http)

    text, vision = (sum(counts) for counts in zip(*computed, strict=True))
    assert text > 0 and vision > 0
    for index in range(len(after["layers"])):
        text_before, vision_before = before["tokens"][index]
        assert after["tokens"][index] == [text_before + text, vision_before + vision]
        tail = after["tail_tokens"][index] - before["tail_tokens"][index]
        text_picks, vision_picks = (
            sum(after["expert_tokens"][index][modality]) - sum(before["expert_tokens"][index][modality])
            for modality in (0, 1)
        )
        assert text_picks == TOP_K * text
        assert vision_picks == TOP_K * (vision - tail) + TAIL_EXPERTS * tail


def test_a_request_uses_the_numbers_of_experts_that_it_sets(http: httpx.Client, picture: bytes) -> None:
    body = {
        "model": "prismoji",
        "messages": user(image_part(picture), "What is this?"),
        "max_tokens": 1,
        "mm_processor_kwargs": {"routing": {"tail_experts": 3, "head_experts": 1}},
    }
    before, counted_before = load(http), scrape(http)
    _, vision = Request(body, images=1).computed(http)
    after, counted_after = load(http), scrape(http)
    for routing, requests in (("request", 1), ("default", 0)):
        key = ("prismoe_requests_total", routing)
        assert counted_after[key] - counted_before[key] == requests
    for index in range(len(after["layers"])):
        tail = after["tail_tokens"][index] - before["tail_tokens"][index]
        picks = sum(after["expert_tokens"][index][1]) - sum(before["expert_tokens"][index][1])
        assert 0 < tail < vision
        assert picks == (vision - tail) + 3 * tail


def test_refused_requests_count_nothing(http: httpx.Client) -> None:
    before = load(http)
    http.post(
        "/v1/chat/completions", json={"model": "prismoji", "messages": [{"role": "wizard", "content": "Hi"}]}
    )
    assert load(http) == before


def test_metrics_show_the_same_load_and_vllms_own(http: httpx.Client, picture: bytes) -> None:
    body = {"model": "prismoji", "messages": user(image_part(picture), "What is this?"), "max_tokens": 3}
    http.post("/v1/chat/completions", json=body).raise_for_status()
    reported = load(http)
    samples = scrape(http)
    end = time.monotonic() + 10
    while samples[("prismoe_tokens_total", "text")] < reported["tokens"][0][0] and time.monotonic() < end:
        time.sleep(0.1)
        samples = scrape(http)

    assert reported["modalities"] == ["text", "image"]
    for index, layer in enumerate(reported["layers"]):
        for modality, counts in zip(reported["modalities"], reported["expert_tokens"][index], strict=True):
            for expert, count in enumerate(counts):
                key = ("prismoe_expert_tokens_total", str(layer), modality, str(expert))
                assert samples[key] == count
        assert (
            samples[("prismoe_layer_vision_tail_tokens_total", str(layer))] == reported["tail_tokens"][index]
        )
    assert samples[("prismoe_tokens_total", "image")] == reported["tokens"][0][1]
    names = {key[0] for key in samples}
    assert {"vllm:prompt_tokens_total", "http_requests_total"} <= names


def scrape(http: httpx.Client) -> dict[tuple[str, ...], float]:
    """The values by name and labels, in a fixed order of labels."""
    order = ("layer", "modality", "expert", "routing")
    samples = {}
    for family in text_string_to_metric_families(http.get("/metrics").raise_for_status().text):
        for sample in family.samples:
            if sample.name.startswith("prismoe_"):
                assert sample.labels["model_name"] == "prismoji"
            labels = [sample.labels[label] for label in order if label in sample.labels]
            samples[(sample.name, *labels)] = sample.value
    return samples
