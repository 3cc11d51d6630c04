"""The `prismoe` command: its subcommands and their arguments.

May import every room of the server.
"""
