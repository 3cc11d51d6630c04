"""The HTTP app around vLLM's app: its parts, the engine behind it, and the form of its errors.

May import every room of the server but commands.
"""
