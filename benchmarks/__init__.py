"""What measures in process, beside vLLM or on a GPU. May import everything; nothing imports it."""
