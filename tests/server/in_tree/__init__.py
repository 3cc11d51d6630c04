"""vLLM's own models behind `prismoe serve`, held against transformers over HTTP."""
