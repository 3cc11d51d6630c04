"""Broken images and requests, and what watches a server for what it reaches for."""
