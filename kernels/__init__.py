"""The arithmetic that routing policies share, in PyTorch and Triton; its float64 reference is in tests."""
