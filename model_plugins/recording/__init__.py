"""What can be recorded of a running model: a request's routing, a reference's arrays, what routers see.

May import moe_layer and what is behind it.
"""
