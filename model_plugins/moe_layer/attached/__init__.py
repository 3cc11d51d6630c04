"""What stands at the MoE layers of a model that vLLM has built: `native` read along, policies, shadows.

It is attached after the model is loaded. May import the rest of `moe_layer`; knows a model by
name only where its tokens or layers are unlike the others'.
"""
