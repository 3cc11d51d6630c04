"""Clients that people use, each in its own environment: `make clients`."""
