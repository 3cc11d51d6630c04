"""Decodes videos from untrusted bytes to frames, in a separate process."""
