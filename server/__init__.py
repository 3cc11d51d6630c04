"""The API process: the command line, the HTTP app, metrics and the inspector. Starts without torch.

Its rooms, each of which may import those behind it: commands, app, inspector, health, requests, metrics,
logs, limits, media, access. Of model_plugins it imports what needs no torch; it knows no kernel.
"""
