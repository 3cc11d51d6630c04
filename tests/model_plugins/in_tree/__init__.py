"""Tiny checkpoints of vLLM's own vision-language models with experts, and what transformers makes of them."""
