"""Widely used clients, each in its own environment: `make clients`."""
