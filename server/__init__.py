"""The API process: the command line, the HTTP app, metrics and the inspector. Starts without torch.

Its rooms: commands; app; inspector, health and requests; metrics, logs and media; limits; access. Each may
import those of the groups behind its own. Of model_plugins it imports what needs no torch; it
knows no kernel.
"""
