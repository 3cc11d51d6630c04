"""Routing policies: each turns hidden states, gate logits and segments into experts and weights."""

ROUTING_KEY = "prismoe_routing"
"""The key that says how to route, in a checkpoint's config.json and in vLLM's additional_config."""
NATIVE = {"policy": "native"}
"""How a model routes that vLLM has itself: as it was trained to."""
