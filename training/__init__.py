"""prismoe."""
