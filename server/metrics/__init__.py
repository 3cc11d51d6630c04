"""Expert load by modality: its readings, its metrics for Prometheus, its routes, and changes of the routing.

Imports no other room of the server.
"""
