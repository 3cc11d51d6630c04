"""vLLM's own models in `prismoe serve`, compared with transformers over HTTP."""
