"""Measurements of a running server, over its HTTP API alone."""
