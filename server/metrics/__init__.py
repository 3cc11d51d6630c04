"""Expert load by modality: read from the engine, measured, exported to Prometheus, and its routes.

Imports no other room of the server.
"""
