"""Writes the dashboards' JSON. With --check, fails if the files differ from what it would write."""

import argparse
import json
import sys
from pathlib import Path

from experts import experts
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from serving import serving

FOLDER = Path(__file__).parent / "dashboards"
DASHBOARDS = {"serving.json": serving, "experts.json": experts}


def main() -> int:
    """Write or check the files, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing, and fail if a file is out of date"
    )
    check = parser.parse_args().check
    out_of_date = []
    for name, build in DASHBOARDS.items():
        text = json.dumps(build().build(), cls=JSONEncoder, indent=2) + "\n"
        path = FOLDER / name
        if not check:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            out_of_date.append(name)
    if out_of_date:
        print(f"Out of date in {FOLDER}: {', '.join(out_of_date)}. Run `make dashboards`.", file=sys.stderr)
    return 1 if out_of_date else 0


if __name__ == "__main__":
    sys.exit(main())
