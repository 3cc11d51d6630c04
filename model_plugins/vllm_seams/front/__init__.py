"""Seams in the process that answers HTTP or calls the engine: command line, requests, media and answers.

One file each. Imports nothing of prismoe but `check`.
"""
