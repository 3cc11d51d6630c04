"""The path of the repository."""

from pathlib import Path

# prismoe/benchmarks is a link to the folder of this file.
REPOSITORY = Path(__file__).resolve().parents[1]
