"""Fast forms of the arithmetic that routing policies share, each beside its plain reference."""
