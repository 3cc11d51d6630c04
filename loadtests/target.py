"""The server under test: what it serves, and what it counts."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel, ConfigDict

from prismoe.loadtests.traffic import authorization, client, picture

SETTLED_S = 6
"""Longer than prismoe's default --expert-load-interval."""

OWN = ("vllm:", "prismoe_")
"""How the names begin that matter; others, such as the process's CPU seconds, never stand still."""

Labels = frozenset[tuple[str, str]]
Counters = dict[tuple[str, Labels], float]
"""The value of each series by its name and labels, but for labels that tell servers or engines apart."""


class Target(BaseModel):
    """A server, and how its prompts are made."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str
    model: str
    """The name that it serves the model by."""
    tokenizer: str
    """The folder that its tokenizer is read from."""
    image_tokens: float
    """Vision tokens of a picture."""
    tokens_beside_image: float
    """Text tokens that each further picture brings along."""
    template_tokens: int
    """Text tokens of a prompt that are not the question's."""


async def find(url: str, tokenizer: str | None) -> Target:
    """What is served at `url`, by requests with one and two pictures. Raises ValueError, httpx.HTTPError."""
    async with client(url) as session:
        served = (await _get(session, "/v1/models"))["data"][0]
        folder = tokenizer or str(served.get("root") or "")
        if not Path(folder).exists():
            raise ValueError(
                f"The tokenizer of {served['id']} is not on this machine: name its folder with --tokenizer."
            )
        before = await counters(session)
        one = await _prompt_tokens(session, served["id"], [picture(1)])
        two = await _prompt_tokens(session, served["id"], [picture(2), picture(3)])
        counted = difference(before, await counters(session))
    image_tokens = total(counted, "prismoe_tokens_total", modality="image") / 3 or two - one
    return Target(
        url=url,
        model=served["id"],
        tokenizer=folder,
        image_tokens=image_tokens,
        tokens_beside_image=two - one - image_tokens,
        template_tokens=round(one - (two - one)) - 1,
    )


async def counters(session: httpx.AsyncClient, since: Counters | None = None) -> Counters:
    """The counters of /metrics, once those of the experts have caught up with the engine's `since` then.

    They do so at an interval, and never where more was computed than vLLM counts, as for a request that its
    client left: then they are taken as they are after `SETTLED_S` seconds without a change.
    """
    latest = await counters_now(session)
    unchanged = 0
    while any(name == "prismoe_tokens_total" for name, _ in latest) and unchanged < SETTLED_S:
        await asyncio.sleep(1)
        before, latest = latest, await counters_now(session)
        unchanged = unchanged + 1 if latest == before else 0
        if unchanged and _ahead(latest) == _ahead(since or {}):
            break
    return latest


def _ahead(counted: Counters) -> float:
    return total(counted, "prismoe_tokens_total") - computed_tokens(counted)


async def running_requests(session: httpx.AsyncClient) -> dict[str, float]:
    """Requests that the server works on, and that wait."""
    gauges = parse(await _metrics(session), "gauge")
    return {name: total(gauges, f"vllm:num_requests_{name}") for name in ("running", "waiting")}


def total(counted: Counters, name: str, **labels: str) -> float:
    """The sum over the series of `name` that have these labels."""
    return sum(value for (series, own), value in counted.items() if series == name and labels.items() <= own)


def difference(before: Counters, after: Counters) -> Counters:
    """How much each counter grew."""
    return {series: value - before.get(series, 0) for series, value in after.items()}


def computed_tokens(counted: Counters) -> float:
    """Tokens that the engine computed: prompts but for what was cached, answers but for their last."""
    prompt = total(counted, "vllm:prompt_tokens_total") - total(counted, "vllm:prompt_tokens_cached_total")
    return prompt + total(counted, "vllm:generation_tokens_total") - finished(counted)


def finished(counted: Counters) -> float:
    """Requests that the server answered to their end."""
    return total(counted, "vllm:request_success_total")


async def counters_now(session: httpx.AsyncClient) -> Counters:
    """The counters of /metrics as they stand."""
    return parse(await _metrics(session), "counter", "_total")


async def _metrics(session: httpx.AsyncClient) -> str:
    key = authorization("PRISMOE_METRICS_KEY", "OPENAI_API_KEY")
    response = await session.get("/metrics", headers={"Accept": "text/plain", **key})
    response.raise_for_status()
    return response.text


def parse(exposition: str, kind: str, ending: str = "") -> Counters:
    """vLLM's and prismoe's series of this kind whose names end so, added up over engines."""
    found: Counters = {}
    for family in text_string_to_metric_families(exposition):
        if family.type != kind:
            continue
        for sample in family.samples:
            if sample.name.startswith(OWN) and sample.name.endswith(ending):
                labels = {name: text for name, text in sample.labels.items() if name != "engine"}
                series = sample.name, frozenset(labels.items())
                found[series] = found.get(series, 0) + sample.value
    return found


async def _get(session: httpx.AsyncClient, path: str) -> Any:
    response = await session.get(path)
    response.raise_for_status()
    return response.json()


async def _prompt_tokens(session: httpx.AsyncClient, model: str, pictures: list[str]) -> int:
    """The prompt tokens of a question of one word."""
    images = [{"type": "image_url", "image_url": {"url": url}} for url in pictures]
    content = [*images, {"type": "text", "text": "a"}]
    body = {"model": model, "max_tokens": 1, "messages": [{"role": "user", "content": content}]}
    response = await session.post("/v1/chat/completions", json=body)
    response.raise_for_status()
    return int(response.json()["usage"]["prompt_tokens"])
