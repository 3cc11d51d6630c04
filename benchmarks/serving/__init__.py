"""Compares prismoe's speed with stock vLLM's and plain PyTorch's, on the same machine in the same run."""
