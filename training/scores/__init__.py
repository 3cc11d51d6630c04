"""Scores a trained checkpoint, in this process or through a server, and writes its model card."""
