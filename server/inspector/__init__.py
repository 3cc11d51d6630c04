"""The inspector: it records the routing of a chat request's tokens. It has a route and a page.

May import metrics, which reads the engine.
"""
