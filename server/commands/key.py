"""`prismoe key` adds a key to a file for `prismoe serve --api-keys-file`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from prismoe.server.access.keys import Role, add_key
from prismoe.server.commands.parser import command_parser
from prismoe.server.errors import fail

EXAMPLE = """\
alice keys.txt --role client

The key is printed once. FILE keeps its name, role and SHA-256 digest, for `prismoe serve --api-keys-file`.
A running server reads the file again when it changes. To revoke a key, delete its line.
"""


def key_parser() -> argparse.ArgumentParser:
    """Return the parser of `prismoe key`."""
    parser = command_parser("key", EXAMPLE)
    parser.add_argument("name", metavar="NAME", help="name of the key, for the server's log")
    parser.add_argument(
        "file", metavar="FILE", type=Path, help="key file; it is created if it does not exist"
    )
    parser.add_argument(
        "--role",
        choices=[role.value for role in Role],
        default=Role.CLIENT,
        help="client opens the API (the default); metrics opens /metrics and the expert load; admin opens "
        "everything, and may change the routing",
    )
    return parser


def key(arguments: Sequence[str]) -> int:
    """Add a new key to the file, print it, and return the exit status."""
    options = key_parser().parse_args(list(arguments))
    try:
        print(add_key(options.file, options.name, Role(options.role)))
    except (ValueError, OSError) as error:
        return fail(str(error))
    return 0
