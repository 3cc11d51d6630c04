"""`prismoe top`: a running server's expert load by modality, tokens a second and queue, in the terminal."""

import argparse
import math
import operator
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.client import HTTPException

import numpy as np
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from prismoe.kernels.balance import Counts, variation
from prismoe.kernels.modalities import MODALITIES
from prismoe.server.commands.client import Client
from prismoe.server.commands.load_table import most_and_least_loaded
from prismoe.server.commands.parser import command_parser
from prismoe.server.errors import fail
from prismoe.server.metrics.expert_load import ExpertLoad

EXAMPLE = """\
--url http://127.0.0.1:8000 --interval 5

It also shows the tokens a second and the queue. For a server with keys, put a key of the role metrics into
the environment variable PRISMOE_API_KEY.
"""
LEVELS = "▁▂▃▄▅▆▇█"
BARS_WIDTH = 48
"""The most experts that have a bar each; of more, the most and the least loaded are told."""
FRAME_LINES = 6
"""The lines of a view that tell of no layer."""
SHARES = ("vllm:kv_cache_usage_perc",)
COLORS = dict(zip(MODALITIES, ("cyan", "magenta", "yellow", "green"), strict=True))


@dataclass(frozen=True)
class Snapshot:
    """What a server told, and when."""

    at: float
    load: ExpertLoad
    engine: dict[str, float]
    """vLLM's metrics by name: over its series the sum, or of SHARES the most."""
    not_supported: Sequence[str] = field(default=())
    """Why there are no layers, where there are none."""


def top(arguments: Sequence[str]) -> int:
    """Show the load until interrupted; the exit status."""
    own = top_parser().parse_args(list(arguments))
    client, console = Client(own.url.rstrip("/")), Console()
    try:
        before: Snapshot | None = read(client)
        with Live(console=console, auto_refresh=False, screen=not own.once) as live:
            while True:
                time.sleep(own.interval)
                try:
                    now = read(client)
                except NoSnapshot as error:
                    if own.once:
                        raise
                    live.update(Text(f"{error} Trying again."), refresh=True)
                    before = None
                    continue
                if before is not None and not restarted(before, now):
                    live.update(view(before, now, None if own.once else console.height), refresh=True)
                    if own.once:
                        return 0
                before = now
    except NoSnapshot as error:
        return fail(f"{error} Name yours with --url.")
    except KeyboardInterrupt:
        return 0


class NoSnapshot(Exception):
    """A server could not be read; the message is a sentence."""


def read(client: Client) -> Snapshot:
    """Ask a server. Raises NoSnapshot where it does not answer as a prismoe server does."""
    try:
        return _read(client)
    except (OSError, HTTPException) as error:
        raise NoSnapshot(f"No prismoe server answers at {client.url} ({error}).") from error
    except (ValueError, KeyError) as error:
        raise NoSnapshot(f"What answers at {client.url} is not a prismoe server.") from error


def restarted(before: Snapshot, now: Snapshot) -> bool:
    """Whether the server began to count anew between two readings, or serves another model."""
    if (before.load.modalities, before.load.layers) != (now.load.modalities, now.load.layers):
        return True
    pairs = zip(before.load.tokens, now.load.tokens, strict=True)
    return any(later < earlier for pair in pairs for earlier, later in zip(*pair, strict=True))


def _read(client: Client) -> Snapshot:
    engine: dict[str, float] = {}
    for family in text_string_to_metric_families(client.text("/metrics")):
        for sample in family.samples:
            if sample.name.startswith("vllm:"):
                merge = max if sample.name in SHARES else operator.add
                engine[sample.name] = merge(engine.get(sample.name, 0), sample.value)
    load = ExpertLoad.model_validate(client.get("/v1/routing/load"))
    not_supported = () if load.layers else client.get("/v1/routing")["not_supported"]
    return Snapshot(time.monotonic(), load, engine, not_supported)


def view(before: Snapshot, now: Snapshot, lines: int | None = None) -> RenderableType:
    """What happened between two readings, and the queue as it is.

    Where not all layers find room in so many lines, those whose load is most uneven are shown.
    """
    seconds = now.at - before.at

    def rate(name: str) -> float:
        return (now.engine.get(name, 0) - before.engine.get(name, 0)) / seconds

    head = Text(
        f"prompts {rate('vllm:prompt_tokens_total'):,.0f} tokens/s   "
        f"answers {rate('vllm:generation_tokens_total'):,.0f} tokens/s   "
        f"running {now.engine.get('vllm:num_requests_running', 0):.0f}   "
        f"waiting {now.engine.get('vllm:num_requests_waiting', 0):.0f}   "
        f"KV cache {now.engine.get('vllm:kv_cache_usage_perc', 0):.0%}"
    )
    if not now.load.layers:
        return Group(head, *map(Text, now.not_supported))
    pairs = zip(now.load.expert_tokens, before.load.expert_tokens, strict=True)
    used = [np.array(after) - np.array(earlier) for after, earlier in pairs]
    room = len(used) if lines is None else max(1, (lines - FRAME_LINES) // len(now.load.modalities))
    shown = most_uneven(used, room)
    each = all(used_ME.shape[1] <= BARS_WIDTH for used_ME in used)
    table = Table("layer", "modality", "computed/s", "experts/token")
    for heading in ("load of each expert",) if each else ("most loaded", "least loaded"):
        table.add_column(heading)
    for index in shown:
        for modality, name in enumerate(now.load.modalities):
            tokens = now.load.tokens[index][modality] - before.load.tokens[index][modality]
            counts = used[index][modality].tolist()
            per_token = f"{sum(counts) / tokens:.2f}" if tokens else ""
            cells = [load_bars(counts)] if each else most_and_least_loaded(counts)
            layer = str(now.load.layers[index])
            table.add_row(
                *(layer, name, f"{tokens / seconds:,.0f}", per_token),
                *(Text(cell, COLORS[name]) for cell in cells),
            )
    if len(shown) == len(used):
        return Group(head, table)
    return Group(head, table, Text(f"The {len(shown)} of {len(used)} layers with the most uneven load."))


def most_uneven(used: Sequence[Counts], most: int) -> list[int]:
    """The indices of at most so many layers, those whose experts' load varies most, in the layers' order."""
    variations = np.nan_to_num([variation(used_ME.sum(axis=0)) for used_ME in used])
    ranked: list[int] = np.argsort(-variations, kind="stable").tolist()
    return sorted(ranked[:most])


def load_bars(used: Sequence[int]) -> str:
    """A bar for each expert, as high as its load beside the largest; blank without load."""
    width = max(1, BARS_WIDTH // max(1, len(used)) - 1)
    gap = " " if width > 1 else ""
    most = max(used, default=0)
    return gap.join(
        width * (LEVELS[min(len(LEVELS) * count // most, len(LEVELS) - 1)] if count else " ")
        for count in used
    )


def top_parser() -> argparse.ArgumentParser:
    """Of `prismoe top`."""
    parser = command_parser("top", EXAMPLE)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="server to ask (default: %(default)s)")
    parser.add_argument(
        "--interval", type=_seconds, default=2, metavar="SECONDS", help="time between readings (default: 2)"
    )
    parser.add_argument("--once", action="store_true", default=False, help="end after one interval")
    return parser


def _seconds(argument: str) -> float:
    seconds = float(argument)
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError("it must be more than 0")
    return seconds
