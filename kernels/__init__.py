"""The arithmetic that routing policies share, in PyTorch; its float64 references are in tests.

Imports neither vLLM nor any other room of prismoe.
"""
