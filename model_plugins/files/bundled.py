"""The place of the model that ships with prismoe."""

from pathlib import Path


def bundled_checkpoint() -> Path:
    """The folder of prismoji, the bundled checkpoint."""
    return Path(__file__).parents[1] / "checkpoints" / "prismoji"
