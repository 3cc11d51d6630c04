"""Recorders of a running model: a request's routing, a reference's arrays, routers' inputs.

May import moe_layer and the rooms after it.
"""
