"""Folders that tests read."""

from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
DATA = REPOSITORY / "tests" / "data"
