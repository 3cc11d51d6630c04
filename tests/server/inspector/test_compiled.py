"""Inspections of a compiled engine have its routing but not its gates' logits."""

import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from tests.server.conftest import image_part, user
from tests.server.running import Server

pytestmark = pytest.mark.server

EXPERTS, PATCHES = 4, 64


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    server = Server(tmp_path_factory.mktemp("compiled") / "log", "--no-enforce-eager")
    try:
        server.wait_until_ready()
        with httpx.Client(base_url=server.url, timeout=60) as client:
            yield client
    finally:
        server.stop()


def ask(compiled: httpx.Client, picture: bytes, **options: object) -> httpx.Response:
    messages = user(image_part(picture), "What is this?")
    body = {"model": "prismoji", "messages": messages, "max_tokens": 6, "temperature": 0, **options}
    return compiled.post("/v1/routing/inspect", json=body)


def load(compiled: httpx.Client) -> dict[str, Any]:
    time.sleep(0.6)  # The server answers with a reading that is up to half a second old.
    answer: dict[str, Any] = compiled.get("/v1/routing/load").raise_for_status().json()
    return answer


def test_the_inspection_equals_the_counts(compiled: httpx.Client, picture: bytes) -> None:
    before = load(compiled)
    routing = ask(compiled, picture).raise_for_status().json()["routing"]
    after = load(compiled)
    modalities = np.array([token["modality"] for token in routing["tokens"]])
    assert routing["left_out"] == 0 and (modalities == "image").sum() == PATCHES
    for place, layer in enumerate(routing["layers"]):
        for row, modality in enumerate(after["modalities"]):
            reported = np.zeros(EXPERTS, dtype=int)
            for at in np.flatnonzero(modalities == modality):
                reported[layer["experts"][at]] += 1
            counted = np.array(after["expert_tokens"][place][row]) - before["expert_tokens"][place][row]
            assert counted.tolist() == reported.tolist()
        assert after["tail_tokens"][place] - before["tail_tokens"][place] == sum(layer["tail"]) > 0


def test_the_gates_logits_are_refused(compiled: httpx.Client, picture: bytes) -> None:
    facts = compiled.get("/v1/routing/inspect").raise_for_status().json()
    assert facts["refusal"] is None and facts["router_logits"] is False
    answer = ask(compiled, picture, router_logits=True)
    assert answer.status_code == 400
    assert "leave router_logits out" in answer.json()["error"]["message"]
