"""How fast prismoe is beside stock vLLM and plain PyTorch, on the same machine in the same run."""
