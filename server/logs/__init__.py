"""The log: a line for each request, and each fault of the server once.

May import access.
"""
