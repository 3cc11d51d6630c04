"""Engines on the V2 runner, which every GPU has."""
