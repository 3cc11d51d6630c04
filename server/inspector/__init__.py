"""The inspector: a chat request whose tokens' routing is recorded, its route, and the page that shows it.

May import metrics, which reads the engine.
"""
