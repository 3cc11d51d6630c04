"""What `prismoe check`, `convert` and `calibrate` do. Their errors are ValueError and OSError with a
sentence.

May import every room of model_plugins, and kernels.
"""
