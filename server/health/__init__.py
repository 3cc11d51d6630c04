"""The server's start, its probes, the watch on its engine, and its end.

May import metrics, logs, limits and access.
"""
