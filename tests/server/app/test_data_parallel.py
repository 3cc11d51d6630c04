"""Two data-parallel engines in one server: both work and are inspected, and their counts are added up."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families

from tests.server.conftest import image_part, user
from tests.server.running import Server

pytestmark = pytest.mark.server

REQUESTS, INSPECTIONS = 6, 4
TOKENS_PER_IMAGE = 64


def inspect(server: Server, picture: bytes) -> dict[str, Any]:
    messages = user(image_part(picture), "What is this?")
    body = {"model": "prismoji", "messages": messages, "max_tokens": 4, "ignore_eos": True}
    answer = httpx.post(f"{server.url}/v1/routing/inspect", json=body, timeout=60)
    expert_load: dict[str, Any] = answer.raise_for_status().json()
    return expert_load


def test_expert_load_and_inspections_of_two_engines(tmp_path: Path, picture: bytes) -> None:
    server = Server(tmp_path / "log", "--data-parallel-size", "2", "--heartbeat-seconds", "0.5")
    try:
        server.wait_until_ready()
        client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)

        def ask(_: int) -> int:
            """Send a request, and return the number of computed tokens. The last token is only sampled."""
            messages = user(image_part(picture), "What is this?")
            answer = client.chat.completions.create(
                model="prismoji", messages=messages, max_tokens=4, extra_body={"ignore_eos": True}
            )
            assert answer.usage is not None
            return answer.usage.prompt_tokens + answer.usage.completion_tokens - 1

        with ThreadPoolExecutor(REQUESTS) as pool:
            computed = sum(pool.map(ask, range(REQUESTS)))
        inspected = [inspect(server, picture) for _ in range(INSPECTIONS)]
        time.sleep(0.5)  # The server answers with a reading that is up to half a second old.
        load = httpx.get(f"{server.url}/v1/routing/load").json()
        metrics = httpx.get(f"{server.url}/metrics").text
    finally:
        server.stop()
    assert server.survivors() == []
    for inspection in inspected:  # vLLM alternates between the engines
        routing, usage = inspection["routing"], inspection["completion"]["usage"]
        assert routing["left_out"] == 0
        assert len(routing["tokens"]) == usage["prompt_tokens"] + usage["completion_tokens"] - 1
        assert len(routing["layers"]) == len(load["layers"])
        computed += len(routing["tokens"])
    vision = (REQUESTS + INSPECTIONS) * TOKENS_PER_IMAGE
    assert load["tokens"] == load["scored_tokens"] == [[computed - vision, vision]] * len(load["layers"])
    assert np.all(np.array(load["routing_entropy"]) > 0)
    prompts = {
        sample.labels["engine"]: sample.value
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
        if sample.name == "vllm:prompt_tokens_total"
    }
    assert prompts.keys() == {"0", "1"} and min(prompts.values()) > 0
