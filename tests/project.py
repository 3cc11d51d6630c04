"""What pyproject.toml says of the project, and what it packs."""

import tomllib

from tests.paths import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
ROOMS = sorted(part.name for part in (REPOSITORY / "prismoe").iterdir() if part.is_symlink())
NOT_PACKED = REPOSITORY / "benchmarks" / "serving"
"""It imports tests."""
