"""Limits on requests, their bodies and their connections.

May import access.
"""
