"""Measures how much sooner the first token comes when a request with a picture is repeated.

`python -m prismoe.loadtests.repeated_image URL` sends requests about new pictures, each of them twice. The
first time the server has nothing of them in its caches.
"""

import argparse
import random
import statistics
from typing import Any

from prismoe.loadtests.traffic import chat, client, picture, report, send

QUESTION = "What do you see here? Name its colours, the largest thing in it, and say what that is for."
"""Long enough that the last block of a prompt, which is never cached, holds no part of a picture."""


async def measure(url: str, pictures: int, rounds: int) -> dict[str, Any]:
    """The median seconds to the first token of new and repeated requests, and the median of their ratios."""
    new = random.Random()
    cold, repeated = [], []
    async with client(url) as session:
        await send(session, chat([picture(0)], QUESTION, 2))
        for _ in range(rounds):
            seeds = [new.getrandbits(64) for _ in range(pictures)]
            request = chat([picture(seed) for seed in seeds], QUESTION, 2)
            cold.append((await send(session, request)).first_token_s)
            repeated.append((await send(session, request)).first_token_s)
    ratios = [first / second for first, second in zip(cold, repeated, strict=True)]
    return {
        "pictures": pictures,
        "rounds": rounds,
        "cold_s": statistics.median(cold),
        "repeated_s": statistics.median(repeated),
        "times_faster": statistics.median(ratios),
    }


def main() -> None:
    """Print the measurement as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python -m prismoe.loadtests.repeated_image http://127.0.0.1:8000",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("url", help="URL of the server")
    parser.add_argument("--pictures", type=int, default=1, help="pictures of a request (default: 1)")
    parser.add_argument("--rounds", type=int, default=30, help="rounds to measure (default: 30)")
    args = parser.parse_args()
    report(measure(args.url, args.pictures, args.rounds))


if __name__ == "__main__":
    main()
