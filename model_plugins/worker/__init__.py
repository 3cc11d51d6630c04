"""vLLM's worker and scheduler with prismoe beside them, and an engine's options and checks at start.

May import recording and what is behind it; knows no model.
"""
