"""A request's images and videos: where they may come from, what is fetched of them, and what is decoded.

Imports no other room of the server.
"""
