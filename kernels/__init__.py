"""The arithmetic that routing policies share, in PyTorch; its float64 reference is in the tests."""
