"""What `prismoe check` and `prismoe convert` do. Their errors are ValueError and OSError with a sentence."""
