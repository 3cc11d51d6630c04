"""Seams in the engine's process: its configuration, scheduler, steps, routers and experts.

One file each. Imports nothing of prismoe but `check`.
"""
