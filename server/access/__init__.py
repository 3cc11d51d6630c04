"""Who may use which route: the keys, and the list of routes.

Imports no other room of the server.
"""
