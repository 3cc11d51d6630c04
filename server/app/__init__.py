"""The HTTP app around vLLM's: how it is put together, the engine behind it, and the shape of its errors.

May import every room of the server but commands.
"""
