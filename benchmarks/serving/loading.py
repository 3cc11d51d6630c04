"""Measures how long a large checkpoint takes to load, and how much memory it needs.

    python -m prismoe.benchmarks.serving.loading --family stablelm --dtype bfloat16

It makes a random checkpoint of about a gigabyte and a tiny one, starts an engine on each, and reports the
difference between the two workers. The worker is the engine's largest process. Time is the worker's processor
time, which does not depend on the machine's other load. Memory is its anonymous memory (RssAnon), sampled
every 10 ms. It does not include the pages of a mapped safetensors file, which the system can drop.
"""

import argparse
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import safe_open

from tests.model_plugins.engine import engine
from tests.model_plugins.tiny_checkpoints import FAMILIES, MOE, make_checkpoint

MIB = 2**20
LARGE: dict[str, Any] = {
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "num_hidden_layers": 16,
    "vocab_size": 32768,
    "moe": MOE | {"moe_layers_idx": list(range(0, 16, 2)), "num_experts": [4] * 8},
}
WIDTHS = {"phi": 4096, "stablelm": 2816, "qwen": 2 * 2816}
"""intermediate_size by family; Phi's experts have two matrices, the others' three."""


@dataclass
class Start:
    """The time and memory of a worker's start."""

    seconds: float
    """Processor time in seconds."""
    peak: int
    """The most bytes of anonymous memory."""
    after: int
    """The bytes of anonymous memory when the engine is ready."""


def main() -> None:
    """Load a checkpoint, and print the time and memory that it took."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python -m prismoe.benchmarks.serving.loading --family stablelm --dtype bfloat16",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--family", choices=FAMILIES, default="stablelm", help="language model (default: stablelm)"
    )
    parser.add_argument(
        "--dtype",
        choices=["bfloat16", "float16", "float32"],
        default="bfloat16",
        help="number format of the weights (default: bfloat16)",
    )
    parser.add_argument(
        "--pickled", action="store_true", help="save the weights as .bin instead of safetensors"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sizes = LARGE | {"intermediate_size": WIDTHS[options.family], "dtype": getattr(torch, options.dtype)}
        tiny = start(make_checkpoint(Path(folder) / "tiny", options.family), options.dtype)
        large_folder = make_checkpoint(Path(folder) / "large", options.family, **sizes)
        weights = sum(file.stat().st_size for file in large_folder.glob("*.safetensors"))
        if options.pickled:
            pickle_weights(large_folder)
        large = start(large_folder, options.dtype)
    peak, after = large.peak - tiny.peak, large.after - tiny.after
    print(f"{options.family} {options.dtype}: {weights / MIB:.0f} MiB of weights")
    print(f"load time beyond a tiny checkpoint's: {large.seconds - tiny.seconds:.1f} s")
    print(f"memory beyond a tiny checkpoint's: {peak / MIB:.0f} MiB at the peak ({peak / weights:.2f} × the")
    print(f"weights), {after / MIB:.0f} MiB when ready ({after / weights:.2f} ×)")


def pickle_weights(folder: Path) -> None:
    """Replace the checkpoint's safetensors file with a pickled one."""
    with safe_open(folder / "model.safetensors", "pt") as tensors:
        torch.save({name: tensors.get_tensor(name) for name in tensors.offset_keys()}, folder / "model.bin")
    (folder / "model.safetensors").unlink()


def start(checkpoint: Path, dtype: str) -> Start:
    """Start an engine with a small cache, and measure its worker."""
    samples: list[tuple[int, float]] = []
    ready = threading.Event()
    watcher = threading.Thread(target=watch, args=(samples, ready))
    watcher.start()
    with engine(checkpoint, dtype=dtype, max_num_batched_tokens=512, kv_cache_memory_bytes=256 * MIB):
        ready.set()
        watcher.join()
    after, seconds = samples[-1]
    return Start(seconds, max(memory for memory, _ in samples), after)


def watch(samples: list[tuple[int, float]], ready: threading.Event) -> None:
    """Sample the memory and processor time of the largest child until the engine is ready."""
    last = False
    while not last:
        last = ready.wait(0.01)
        children = psutil.Process().children(recursive=True)
        samples.append(max((sample(child) for child in children), default=(0, 0.0)))


def sample(process: psutil.Process) -> tuple[int, float]:
    """A process's anonymous memory in bytes and its processor time in seconds; zeros if it has ended."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
        times = process.cpu_times()
    except (OSError, psutil.NoSuchProcess):
        return 0, 0.0
    lines = dict(line.split(":", 1) for line in status.splitlines())
    return int(lines.get("RssAnon", "0 kB").split()[0]) * 1024, times.user + times.system


if __name__ == "__main__":
    main()
