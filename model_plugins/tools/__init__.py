"""What `prismoe check`, `convert`, `calibrate` and `evaluate` do. Their errors are ValueError and OSError
with a sentence.

May import every room of model_plugins, and kernels.
"""
