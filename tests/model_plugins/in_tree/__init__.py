"""Tiny checkpoints of vLLM's own vision-language MoE models, and the results of transformers for them."""
