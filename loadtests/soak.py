"""Sends mixed traffic at a fixed rate for many minutes, some of it bad, and records the server's memory."""

import asyncio
import json
import math
import random
import time
from collections import Counter
from typing import Any

import httpx
import psutil

from prismoe.loadtests.bench import Bench
from prismoe.loadtests.results import Check, Memory, Soak
from prismoe.loadtests.scenarios import mixed_traffic
from prismoe.loadtests.target import Counters, computed_tokens, total

ROUND_S = 60
MEMORY_EVERY_S = 5
FIRST_SEED = 1000
"""Each round has its own seed, since repeated requests would be cached."""


def bad_requests(model: str) -> dict[str, bytes]:
    """Bodies that a server has to refuse with a 4xx, by their fault."""

    def chat(*content: dict[str, Any], **changes: Any) -> bytes:
        body = {"model": model, "max_tokens": 4, "messages": [{"role": "user", "content": [*content]}]}
        return json.dumps(body | changes).encode()

    def image(url: str) -> dict[str, Any]:
        return {"type": "image_url", "image_url": {"url": url}}

    words = {"type": "text", "text": "What is this?"}
    return {
        "not JSON": b'{"model": ',
        "no messages": json.dumps({"model": model}).encode(),
        "an unknown model": chat(words, model="no-such-model"),
        "a damaged picture": chat(image("data:image/png;base64,iVBORw0KGgo="), words),
        "a hundred pictures": chat(*[image("data:image/png;base64,iVBORw0KGgo=")] * 100, words),
        "too long a prompt": chat({"type": "text", "text": "word " * 200_000}),
        "a negative answer length": chat(words, max_tokens=-1),
        "an unknown kind of content": chat({"type": "smell", "smell": "roses"}),
    }


async def soak(
    bench: Bench, session: httpx.AsyncClient, minutes: float, rate: float, bad_share: float, pid: int | None
) -> Soak:
    """Send `rate` requests a second for `minutes`, in rounds of a minute, `bad_share` of them bad.

    Between two rounds vLLM's benchmark waits for the last answers and makes the next round's requests.
    The recorded memory is that of the process `pid` and its descendants.
    """
    outcomes: dict[str, Counter[str]] = {}
    memory: list[Memory] = []
    background = {}
    if pid is not None:
        background["the recording of memory"] = asyncio.create_task(_record_memory(pid, memory))
    if bad_share:
        sending = _send_bad(session, bench.target.model, rate * bad_share, outcomes)
        background["the sending of bad requests"] = asyncio.create_task(sending)
    try:
        await _send_good(bench, minutes, rate * (1 - bad_share))
    finally:
        for task in background.values():
            task.cancel()
        ends = await asyncio.gather(*background.values(), return_exceptions=True)
    unexpected = sum(
        count
        for statuses in outcomes.values()
        for status, count in statuses.items()
        if not status.startswith("4")
    )
    broken_off = [
        f"{what}: {type(end).__name__}: {end}"
        for what, end in zip(background, ends, strict=True)
        if isinstance(end, Exception)  # a cancellation is their normal end, and not an Exception
    ]
    return Soak(rate=rate, bad_requests=outcomes, unexpected=unexpected, memory=memory, broken_off=broken_off)


async def _send_good(bench: Bench, minutes: float, rate: float) -> None:
    """Send rounds of mixed traffic."""
    end = time.monotonic() + 60 * minutes
    number = 0
    while (left := end - time.monotonic()) > 0:
        requests = max(1, round(rate * min(ROUND_S, left)))
        number += 1
        await bench.run(
            mixed_traffic(f"soak-{number}", requests, at_once=None, rate=rate, seed=FIRST_SEED + number)
        )


def consistent(counted: Counters, under_way: dict[str, float]) -> list[Check]:
    """Check that the server's counters agree with each other, and that no request is left."""
    checks = [
        Check(
            what=f"requests {name} after the last answer: found, expected", left=value, right=0, tolerance=0
        )
        for name, value in under_way.items()
    ]
    if not any(name == "prismoe_tokens_total" for name, _ in counted):
        return checks
    tokens, expected = total(counted, "prismoe_tokens_total"), computed_tokens(counted)
    preempted = total(counted, "vllm:num_preemptions_total")
    cached = total(counted, "vllm:prompt_tokens_cached_total")
    what = "tokens computed: by the experts' counters, by vLLM's"
    # The experts' counters count some tokens twice: those that a preempted request computes again, and
    # those of an image that the prefix cache has only a part of.
    again = tokens - expected
    if 0 < again <= (math.inf if preempted else cached):
        what += f", but for {again:g} after {preempted:g} preemptions and {cached:g} cached tokens"
        tokens = expected
    checks.append(Check(what=what, left=tokens, right=expected))
    used = total(counted, "prismoe_used_experts_total")
    if by_expert := total(counted, "prismoe_expert_tokens_total"):
        checks.append(Check(what="experts used: by expert, in sum", left=by_expert, right=used, tolerance=0))
    return checks


def growth(memory: list[Memory]) -> float | None:
    """Median resident memory in the last quarter over that in the second; None if the record is short."""
    sums = [sum(sample.bytes_by_process.values()) for sample in memory]
    quarter = len(sums) // 4
    if quarter < 2:
        return None
    second, last = sorted(sums[quarter : 2 * quarter]), sorted(sums[-quarter:])
    return last[quarter // 2] / second[quarter // 2]


async def _record_memory(pid: int, memory: list[Memory]) -> None:
    start = time.monotonic()
    while True:
        found = {}
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            try:
                found[f"{process.pid} {process.name()}"] = process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        memory.append(Memory(at_s=time.monotonic() - start, bytes_by_process=found))
        await asyncio.sleep(MEMORY_EVERY_S)


async def _send_bad(
    session: httpx.AsyncClient, model: str, rate: float, outcomes: dict[str, Counter[str]]
) -> None:
    dice = random.Random(0)
    bodies = bad_requests(model)
    under_way: set[asyncio.Task[None]] = set()

    async def send(kind: str) -> None:
        try:
            response = await session.post(
                "/v1/chat/completions", content=bodies[kind], headers={"Content-Type": "application/json"}
            )
            outcome = str(response.status_code)
        except Exception as error:  # Any error counts as an outcome that is not a 4xx.
            outcome = type(error).__name__
        outcomes.setdefault(kind, Counter())[outcome] += 1

    try:
        while True:
            await asyncio.sleep(dice.expovariate(rate))
            task = asyncio.create_task(send(dice.choice(sorted(bodies))))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
    finally:
        await asyncio.gather(*under_way)
