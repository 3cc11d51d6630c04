"""Seams in the engine's process: its configuration, scheduler, steps, routers and experts.

One file each. Of prismoe they only import `check` and each other.
"""
