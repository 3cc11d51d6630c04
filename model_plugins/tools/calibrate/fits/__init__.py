"""The fits: what a routing policy needs beyond a plain checkpoint, from what was recorded of its routers.

May import routing and kernels. Training uses them, too.
"""
