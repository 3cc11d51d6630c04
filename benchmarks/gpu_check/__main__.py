"""`python -m prismoe.benchmarks.gpu_check`: checks that prismoe gives the same results on this GPU as on CPU.

Run it in the repository, on a host with a GPU, vLLM's CUDA build and prismoe installed. It needs no network.
Each check runs in its own process and prints a line, which is kept in a folder. The same command, run again,
runs the checks that have no line yet. docs/cuda.md explains the lines.
"""

import argparse
import sys
from pathlib import Path

from prismoe.benchmarks.gpu_check.run import run_checks
from prismoe.benchmarks.paths import REPOSITORY

LIMIT_S = 540


def main() -> None:
    """Run the checks; exit with status 1 if one failed."""
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
    parser.add_argument("--again", action="store_true", help="run every check, even those that have a line")
    parser.add_argument(
        "--limit",
        type=float,
        default=LIMIT_S,
        help="seconds after which no further check starts (default: %(default)s)",
    )
    parser.add_argument("--dry", action="store_true", help="run the checks that can run on CPU, on CPU")
    args = parser.parse_args()
    module = "prismoe.benchmarks.gpu_check.checks"
    failed = run_checks(module, args.out, is_dry=args.dry, limit_s=args.limit, again=args.again)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
