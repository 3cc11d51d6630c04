"""The commands `prismoe check`, `convert`, `calibrate` and `evaluate`.

Their errors are ValueError and OSError; the message is a sentence for the user. May import every room of
model_plugins, and kernels.
"""
