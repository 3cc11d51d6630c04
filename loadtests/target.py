"""Describes the server under test, and reads its counters."""

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
"""Prefixes of the series that are read. Others, such as the process's CPU seconds, never stop changing."""

Labels = frozenset[tuple[str, str]]
Counters = dict[tuple[str, Labels], float]
"""The value of each series by its name and labels, without the labels that identify an engine."""


class Target(BaseModel):
    """A server, and the token counts of its prompts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str
    model: str
    """The name under which it serves the model."""
    tokenizer: str
    """The folder of the tokenizer."""
    image_tokens: float
    """The number of vision tokens of a picture."""
    tokens_beside_image: float
    """The number of text tokens that each further picture adds."""
    template_tokens: int
    """The number of text tokens in a prompt that don't belong to the question."""


async def find(url: str, tokenizer: str | None) -> Target:
    """Examine the server at `url` with two requests. Raises ValueError or httpx.HTTPError."""
    async with client(url) as session:
        served = (await _get(session, "/v1/models"))["data"][0]
        folder = tokenizer or str(served.get("root") or "")
        if not Path(folder).exists():
            raise ValueError(
                f"The tokenizer of {served['id']} is not on this machine: give its folder as --tokenizer."
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
    """The counters of /metrics, once the experts' counters have caught up with vLLM's since `since`.

    The experts' counters are updated at an interval. They stay ahead if the engine computed more than vLLM
    counts, for example for an aborted request. Then this returns after `SETTLED_S` seconds without a change.
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
    """The numbers of running and of waiting requests."""
    gauges = parse(await _metrics(session), "gauge")
    return {name: total(gauges, f"vllm:num_requests_{name}") for name in ("running", "waiting")}


def total(counted: Counters, name: str, **labels: str) -> float:
    """The sum over the series called `name` that have these labels."""
    return sum(value for (series, own), value in counted.items() if series == name and labels.items() <= own)


def difference(before: Counters, after: Counters) -> Counters:
    """The growth of each counter."""
    return {series: value - before.get(series, 0) for series, value in after.items()}


def computed_tokens(counted: Counters) -> float:
    """The number of computed tokens: prompts without cached tokens, answers without their last token."""
    prompt = total(counted, "vllm:prompt_tokens_total") - total(counted, "vllm:prompt_tokens_cached_total")
    return prompt + total(counted, "vllm:generation_tokens_total") - finished(counted)


def finished(counted: Counters) -> float:
    """The number of completed requests."""
    return total(counted, "vllm:request_success_total")


async def counters_now(session: httpx.AsyncClient) -> Counters:
    """The current counters of /metrics."""
    return parse(await _metrics(session), "counter", "_total")


async def _metrics(session: httpx.AsyncClient) -> str:
    key = authorization("PRISMOE_METRICS_KEY", "OPENAI_API_KEY")
    response = await session.get("/metrics", headers={"Accept": "text/plain", **key})
    response.raise_for_status()
    return response.text


def parse(exposition: str, kind: str, ending: str = "") -> Counters:
    """The series of vLLM and prismoe with this kind and ending, added up over engines."""
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
    """The number of prompt tokens of a question with one word and these pictures."""
    images = [{"type": "image_url", "image_url": {"url": url}} for url in pictures]
    content = [*images, {"type": "text", "text": "a"}]
    body = {"model": model, "max_tokens": 1, "messages": [{"role": "user", "content": content}]}
    response = await session.post("/v1/chat/completions", json=body)
    response.raise_for_status()
    return int(response.json()["usage"]["prompt_tokens"])
