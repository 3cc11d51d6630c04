"""Routing for models that vLLM has built: observed `native` routing, policies, shadow policies.

It is attached after the model is loaded. May import the rest of `moe_layer`; names a model only where the
model's tokens or layers differ from those of others.
"""
