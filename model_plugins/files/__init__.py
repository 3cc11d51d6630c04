"""Checkpoints as files: on the Hub, on disk, and the bundled one. Imports nothing of prismoe."""
