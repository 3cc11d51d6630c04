"""The model for training, in plain PyTorch, and its checkpoint files."""
