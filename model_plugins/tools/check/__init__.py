"""`prismoe check`: what a checkpoint is, whether it loads, how far it is from a reference."""
