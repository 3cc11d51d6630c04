"""Fits what a routing policy needs beyond a plain checkpoint to what was recorded of its routers."""
