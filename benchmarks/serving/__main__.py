"""`python -m prismoe.benchmarks.serving`: measures the systems of docs/performance.md, and writes the page.

The figures of each system are kept in build/performance and not measured again; remove the folder for a new
run. `--only NAME…` measures only these systems. A full run takes about forty minutes on two cores, and 8 GB
of disk.
"""

import argparse
from pathlib import Path

from prismoe.benchmarks.paths import REPOSITORY
from prismoe.benchmarks.serving.page import page, plots
from prismoe.benchmarks.serving.systems import SYSTEMS, SystemSpeed, measure


def main() -> None:
    """Measure what is missing, then write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python -m prismoe.benchmarks.serving --folder build/performance",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=[system.name for system in SYSTEMS],
        help="measure only these systems (default: all)",
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=REPOSITORY / "build/performance",
        help="folder to keep figures in (default: build/performance)",
    )
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, SystemSpeed] = {}
    for system in SYSTEMS:
        file = args.folder / f"{system.name}.json"
        if not file.exists() and (not args.only or system.name in args.only):
            print(system.name, flush=True)
            file.write_text(measure(system, args.folder).model_dump_json(indent=1))
        if file.exists():
            found[system.name] = SystemSpeed.model_validate_json(file.read_text())
    docs = REPOSITORY / "docs"
    (docs / "performance.md").write_text(page(found))
    for name, svg in plots(found).items():
        (docs / f"{name}.svg").write_text(svg)


if __name__ == "__main__":
    main()
