"""The model that is trained, in plain PyTorch, and its checkpoint."""
