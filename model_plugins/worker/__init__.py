"""prismoe's extension of vLLM's worker, and an engine's options and checks at the start.

May import recording and the rooms after it; imports no model.
"""
