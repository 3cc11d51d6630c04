"""Routing policies: each turns hidden states, gate logits and segments into experts and weights."""

from typing import Literal

ROUTING_KEY = "prismoe_routing"
"""The key that says how to route, in a checkpoint's config.json and in vLLM's additional_config."""
NATIVE = {"policy": "native"}
"""How a model routes that vLLM has itself: as it was trained to."""
RoutedBy = Literal["native", "policy"]
"""Whose choice a model's MoE layers take: that of its own gate, as vLLM computes it, or a policy's."""
