"""The `prismoe` command: its arguments and settings, and what each subcommand does.

May import every room of the server.
"""
