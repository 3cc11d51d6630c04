"""`prismoe check`: reports a checkpoint, whether it loads, and how far it is from a reference."""
