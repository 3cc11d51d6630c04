"""The API process: the command line, the HTTP app, metrics and the inspector. It starts without torch.

The groups of rooms, from top to bottom: commands; app; inspector, health and requests; metrics, logs and
media; limits; access. A room may import rooms of lower groups. The server imports only modules of
model_plugins and kernels that need no torch.
"""
