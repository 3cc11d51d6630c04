"""`python -m prismoe.benchmarks.gpu_check`: does prismoe do on this GPU what it does on CPU?

In the repository, on a host with a GPU, vLLM's CUDA build and prismoe installed; it needs no network. Each
check runs in a process of its own and prints a line, which is kept in a folder. The same command again does
the checks that have no line yet. docs/cuda.md says what the lines mean.
"""

import argparse
import sys
from pathlib import Path

from prismoe.benchmarks.gpu_check.run import run_checks
from prismoe.benchmarks.paths import REPOSITORY

LIMIT_S = 540


def main() -> None:
    """Run the checks; the exit status is 1 where one failed."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python -m prismoe.benchmarks.gpu_check --dry --out build/gpu_check",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=REPOSITORY / "build" / "gpu_check",
        help="folder to write lines and logs to (default: build/gpu_check)",
    )
    parser.add_argument("--again", action="store_true", help="run every check, also those that have a line")
    parser.add_argument(
        "--limit",
        type=float,
        default=LIMIT_S,
        help="seconds after which no further check starts (default: %(default)s)",
    )
    parser.add_argument("--dry", action="store_true", help="run on CPU the checks that can run there")
    args = parser.parse_args()
    module = "prismoe.benchmarks.gpu_check.checks"
    failed = run_checks(module, args.out, is_dry=args.dry, limit_s=args.limit, again=args.again)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
