"""Routing policies: each turns hidden states, gate logits and segments into experts and weights."""

from typing import Literal

ROUTING_KEY = "prismoe_routing"
"""The key of the routing settings, in a checkpoint's config.json and in vLLM's additional_config."""
NATIVE = {"policy": "native"}
"""The routing of vLLM's own models: as they were trained."""
RoutedBy = Literal["native", "policy"]
"""Who chooses the experts: the model's own gate, as vLLM computes it, or a policy."""
