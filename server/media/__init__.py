"""A request's images and videos: their allowed sources, and how they are read and decoded.

Imports no other room of the server.
"""
