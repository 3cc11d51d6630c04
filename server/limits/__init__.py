"""How much a client may take.

May import access.
"""
