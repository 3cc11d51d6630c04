"""What stands at a MoE layer of a model: routers, the step's tokens, requests, expert load.

`experts` runs the experts, and `attached` stands in models that vLLM has built. May import routing and
kernels; knows no model.
"""
