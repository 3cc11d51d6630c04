"""The repository, whose documents, dashboards and rules the measurements read and write."""

from pathlib import Path

# This file is found under prismoe/, through a link.
REPOSITORY = Path(__file__).resolve().parents[1]
