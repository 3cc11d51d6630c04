"""Runs only the experts that each token uses, by platform.

May import routers, the step and kernels; imports nothing of `attached`.
"""
