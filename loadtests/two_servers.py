"""Compares the throughput of two servers under the same mixed load.

`python -m prismoe.loadtests.two_servers URL_A URL_B` sends the requests of each round to one server and then
to the other; which comes first alternates. It prints A's tokens per second over B's.
"""

import argparse
import random
import statistics
import time
from typing import Any

import httpx

from prismoe.loadtests.traffic import QUESTIONS, chat, client, picture, report, send_all

TEXT_SHARE = 0.4


def mixed_requests(count: int, seed: int) -> list[dict[str, Any]]:
    """Requests with zero to two pictures and answers of 4 to 48 tokens. All pictures differ."""
    dice = random.Random(seed)
    requests = []
    for _ in range(count):
        pictures = 0 if dice.random() < TEXT_SHARE else dice.randint(1, 2)
        urls = [picture(dice.getrandbits(64)) for _ in range(pictures)]
        requests.append(chat(urls, dice.choice(QUESTIONS), dice.randint(4, 48)))
    return requests


async def tokens_per_second(
    session: httpx.AsyncClient, requests: list[dict[str, Any]], at_once: int
) -> float:
    """Send all requests, and return the answer tokens per second."""
    start = time.perf_counter()
    timings = await send_all(session, requests, at_once)
    return sum(timing.tokens for timing in timings) / (time.perf_counter() - start)


async def compare(url_a: str, url_b: str, rounds: int, requests: int, at_once: int) -> dict[str, Any]:
    """The ratio A / B: its median over the rounds, and the bounds of their middle half."""
    ratios = []
    async with client(url_a) as a, client(url_b) as b:
        for turn in range(-1, rounds):  # the first round warms up
            load = mixed_requests(requests, seed=turn)
            order = [a, b] if turn % 2 else [b, a]
            speed = {session: await tokens_per_second(session, load, at_once) for session in order}
            if turn >= 0:
                ratios.append(speed[a] / speed[b])
    low, median, high = statistics.quantiles(ratios, n=4)
    return {"rounds": rounds, "a_over_b": median, "middle_half": [low, high]}


def main() -> None:
    """Print the comparison as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python -m prismoe.loadtests.two_servers http://127.0.0.1:8000 http://127.0.0.1:8001",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("url_a", help="first server")
    parser.add_argument("url_b", help="second server")
    parser.add_argument("--rounds", type=int, default=20, help="rounds to measure (default: 20)")
    parser.add_argument("--requests", type=int, default=24, help="requests of a round (default: 24)")
    parser.add_argument("--at-once", type=int, default=8, help="requests at a time (default: 8)")
    args = parser.parse_args()
    report(compare(args.url_a, args.url_b, args.rounds, args.requests, args.at_once))


if __name__ == "__main__":
    main()
