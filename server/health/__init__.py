"""How the server starts, whether it is alive and ready, and how it ends.

May import metrics, logs, limits and access.
"""
