"""`prismoe top` shows a running server's expert load, tokens per second and queue in the terminal."""

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

It also shows the tokens per second and the queue. If the server has keys, put a key with the role metrics
into the environment variable PRISMOE_API_KEY.
"""
LEVELS = "▁▂▃▄▅▆▇█"
BARS_WIDTH = 48
"""The most experts that get a bar each. With more, only the most and the least loaded are shown."""
FRAME_LINES = 6
"""The number of lines of a view outside its layers."""
SHARES = ("vllm:kv_cache_usage_perc",)
COLORS = dict(zip(MODALITIES, ("cyan", "magenta", "yellow", "green"), strict=True))


@dataclass(frozen=True)
class Snapshot:
    """A reading of a server's load and metrics, and its time."""

    at: float
    load: ExpertLoad
    engine: dict[str, float]
    """vLLM's metrics by name: the sum over a metric's series, or the largest for those in SHARES."""
    not_supported: Sequence[str] = field(default=())
    """Sentences that say why there are no layers; empty if there are some."""


def top(arguments: Sequence[str]) -> int:
    """Show the load until an interruption, and return the exit status."""
    options = top_parser().parse_args(list(arguments))
    client, console = Client(options.url.rstrip("/")), Console()
    try:
        before: Snapshot | None = read(client)
        with Live(
            console=console, auto_refresh=False, screen=not options.once, transient=options.once
        ) as live:
            while True:
                time.sleep(options.interval)
                try:
                    now = read(client)
                except NoSnapshot as error:
                    if options.once:
                        raise
                    live.update(Text(f"{error} Trying again."), refresh=True)
                    before = None
                    continue
                if before is not None and not restarted(before, now):
                    if options.once:
                        console.print(view(before, now, None))
                        return 0
                    live.update(view(before, now, console.height), refresh=True)
                before = now
    except NoSnapshot as error:
        return fail(f"{error} Give the server's URL with --url.")
    except KeyboardInterrupt:
        return 0


class NoSnapshot(Exception):
    """A server could not be read. The message is a sentence."""


def read(client: Client) -> Snapshot:
    """Read a server's load and metrics. Raises NoSnapshot if it does not answer like a prismoe server."""
    try:
        return _read(client)
    except (OSError, HTTPException) as error:
        raise NoSnapshot(f"No prismoe server answers at {client.url} ({error}).") from error
    except (ValueError, KeyError) as error:
        raise NoSnapshot(f"The server at {client.url} is not a prismoe server.") from error


def restarted(before: Snapshot, now: Snapshot) -> bool:
    """Return whether the server reset its counts between two readings, or serves another model."""
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
    """Return a view of the load between two readings, and of the present queue.

    If `lines` are too few for all layers, the layers with the most uneven load are shown.
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
    shows_all = all(used_ME.shape[1] <= BARS_WIDTH for used_ME in used)
    table = Table("layer", "modality", "computed/s", "experts/token")
    for heading in ("load of each expert",) if shows_all else ("most loaded", "least loaded"):
        table.add_column(heading)
    for index in shown:
        for modality, name in enumerate(now.load.modalities):
            tokens = now.load.tokens[index][modality] - before.load.tokens[index][modality]
            counts = used[index][modality].tolist()
            per_token = f"{sum(counts) / tokens:.2f}" if tokens else ""
            cells = [load_bars(counts)] if shows_all else most_and_least_loaded(counts)
            layer = str(now.load.layers[index])
            table.add_row(
                *(layer, name, f"{tokens / seconds:,.0f}", per_token),
                *(Text(cell, COLORS[name]) for cell in cells),
            )
    if len(shown) == len(used):
        return Group(head, table)
    note = f"These are the {len(shown)} of {len(used)} layers with the most uneven load."
    return Group(head, table, Text(note))


def most_uneven(used: Sequence[Counts], max_layers: int) -> list[int]:
    """Return the indices of the layers whose experts' load varies most, in the layers' order."""
    variations = np.nan_to_num([variation(used_ME.sum(axis=0)) for used_ME in used])
    ranked: list[int] = np.argsort(-variations, kind="stable").tolist()
    return sorted(ranked[:max_layers])


def load_bars(used: Sequence[int]) -> str:
    """Return a bar for each expert, with its load relative to the largest; a blank for no load."""
    width = max(1, BARS_WIDTH // max(1, len(used)) - 1)
    gap = " " if width > 1 else ""
    most = max(used, default=0)
    return gap.join(
        width * (LEVELS[min(len(LEVELS) * count // most, len(LEVELS) - 1)] if count else " ")
        for count in used
    )


def top_parser() -> argparse.ArgumentParser:
    """Return the parser of `prismoe top`."""
    parser = command_parser("top", EXAMPLE)
    parser.add_argument(
        "--url", default="http://127.0.0.1:8000", help="URL of the server (default: %(default)s)"
    )
    parser.add_argument(
        "--interval", type=_seconds, default=2, metavar="SECONDS", help="time between readings (default: 2)"
    )
    parser.add_argument("--once", action="store_true", default=False, help="end after one interval")
    return parser


def _seconds(argument: str) -> float:
    try:
        seconds = float(argument)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError("give a number of seconds greater than 0")
    return seconds
