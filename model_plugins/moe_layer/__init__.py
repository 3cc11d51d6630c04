"""The code at a model's MoE layers: routers, the step's tokens, requests, expert load.

`experts` runs the experts, and `attached` adds prismoe to models that vLLM has built. May import routing and
kernels; imports no model.
"""
