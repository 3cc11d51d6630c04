"""How long two servers take to read the same prompts, in turns.

The time is vLLM's own, from when a request is scheduled to its first token, so HTTP and the pictures'
decoding are outside it. Every prompt differs in its first words, so the prefix cache holds nothing of it; the
pictures are always the same, so the tower runs in the first round alone.
"""

import base64
import itertools
import re
import statistics
import time
import urllib.request
from collections.abc import Sequence
from typing import Any, NamedTuple

from prismoe.training.scores.score import Server

PICTURES = 8  # a prompt: 512 tokens of vision
ROUNDS = 40
PROMPTS = 5  # of a round
NUMBERS = itertools.count()  # no server is asked the same twice
WAIT = 5  # seconds until a finished request is counted
METRIC = "vllm:request_prefill_time_seconds"


class Ratio(NamedTuple):
    """The median over the rounds, and the middle half of them."""

    low: float
    median: float
    high: float


def prefill_ratio(url: str, baseline_url: str, pngs: Sequence[bytes]) -> Ratio:
    """One server's prefill time over the baseline's. Which is asked first changes from round to round."""
    own, baseline = Server(url), Server(baseline_url)
    ratios = []
    for turn in range(-1, ROUNDS):  # the first warms up
        order = [own, baseline] if turn % 2 else [baseline, own]
        prompts = [_prompt(f"{next(NUMBERS)}. ", pngs[:PICTURES]) for _ in range(PROMPTS)]
        seconds = {server.url: _prefill_seconds(server, prompts) for server in order}
        if turn >= 0:
            ratios.append(seconds[own.url] / seconds[baseline.url])
    return Ratio(*statistics.quantiles(ratios, n=4))


def _prefill_seconds(server: Server, prompts: Sequence[list[dict[str, Any]]]) -> float:
    before, asked = _read(server.url)
    for prompt in prompts:
        server.ask(prompt, max_tokens=1)
    end = time.monotonic() + WAIT
    while time.monotonic() < end:
        after, answered = _read(server.url)
        if answered == asked + len(prompts):
            return after - before
        time.sleep(0.01)
    raise RuntimeError(f"The server did not count its requests in {METRIC}.")


def _prompt(opening: str, pngs: Sequence[bytes]) -> list[dict[str, Any]]:
    urls = [f"data:image/png;base64,{base64.b64encode(png).decode()}" for png in pngs]
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"type": "text", "text": opening}, *images, {"type": "text", "text": "What is this?"}]


def _read(url: str) -> tuple[float, float]:
    """The seconds and the number of all prefills so far."""
    with urllib.request.urlopen(f"{url}/metrics") as response:
        text = response.read().decode()
    values = (re.search(rf"^{METRIC}_{part}{{.*}} (\S+)$", text, re.MULTILINE) for part in ("sum", "count"))
    seconds, count = (float(value[1]) if value else 0.0 for value in values)
    return seconds, count
