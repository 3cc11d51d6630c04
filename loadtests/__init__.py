"""Measures a running server through its HTTP API only."""
