"""Measures how skipping experts changes accuracy: MoDES's search for thresholds against a plain threshold."""
