"""What the log says: a line for each request, and each fault of the server's once.

May import access.
"""
