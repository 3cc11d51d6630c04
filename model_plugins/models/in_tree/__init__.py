"""vLLM's own mixture-of-experts vision-language models: what is known of each, and their page in the docs."""
