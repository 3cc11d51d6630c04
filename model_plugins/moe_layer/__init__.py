"""What stands at a MoE layer of a model: router, experts by platform, token segments, requests, expert load.

May import routing and kernels; knows no model.
"""
