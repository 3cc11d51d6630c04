"""The fits: they compute what a routing policy needs beyond a plain checkpoint from recorded routers.

May import routing and kernels. Training uses them, too.
"""
