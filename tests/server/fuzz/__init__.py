"""Broken images and requests, and a watch on the files and addresses that a server accesses."""
