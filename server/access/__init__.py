"""Who may use which route: keys, and the list of routes.

Imports no other room of the server.
"""
