"""How long a large checkpoint takes to load, and how much memory beyond the weights' own size it takes.

    python -m tests.model_plugins.measure_loading --family stablelm --dtype bfloat16

It makes a random checkpoint of about a gigabyte, starts an engine on it and on a tiny one, and reports the
difference. Memory is the worker's anonymous memory (RssAnon), sampled every 10 ms: the pages of a mapped
safetensors file are not in it, since the system takes them back when it needs them.
"""

import argparse
import tempfile
import threading
import time
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
    """An engine's start."""

    seconds: float
    peak: int
    """Bytes of the worker's anonymous memory at its peak."""
    after: int
    """The same, when the engine is ready."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", choices=FAMILIES, default="stablelm")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--pickled", action="store_true", help="save as .bin in place of safetensors")
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
    print(f"load: {large.seconds - tiny.seconds:.1f} s longer than a tiny checkpoint's {tiny.seconds:.1f} s")
    print(
        f"worker's memory beyond a tiny checkpoint's: peak {peak / MIB:.0f} MiB ({peak / weights:.2f} × the"
    )
    print(f"weights), when ready {after / MIB:.0f} MiB ({after / weights:.2f} ×)")


def pickle_weights(folder: Path) -> None:
    with safe_open(folder / "model.safetensors", "pt") as tensors:
        torch.save({name: tensors.get_tensor(name) for name in tensors.offset_keys()}, folder / "model.bin")
    (folder / "model.safetensors").unlink()


def start(checkpoint: Path, dtype: str) -> Start:
    """Start an engine with a small cache, watching the largest of its processes."""
    samples = [0]
    done = threading.Event()
    watcher = threading.Thread(target=watch, args=(samples, done))
    watcher.start()
    begin = time.monotonic()
    with engine(checkpoint, dtype=dtype, max_num_batched_tokens=512, kv_cache_memory_bytes=64 * MIB):
        seconds = time.monotonic() - begin
        done.set()
        watcher.join()
    return Start(seconds, max(samples), samples[-1])


def watch(samples: list[int], done: threading.Event) -> None:
    while not done.wait(0.01):
        samples.append(
            max((anonymous(child) for child in psutil.Process().children(recursive=True)), default=0)
        )


def anonymous(process: psutil.Process) -> int:
    """The process's anonymous memory in bytes; 0 where it has just ended."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        return 0
    lines = dict(line.split(":", 1) for line in status.splitlines())
    return int(lines.get("RssAnon", "0 kB").split()[0]) * 1024


if __name__ == "__main__":
    main()
