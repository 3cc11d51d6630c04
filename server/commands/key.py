"""`prismoe key`: add a key to a file for `prismoe serve --api-keys-file`."""

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
    """Of `prismoe key`."""
    parser = command_parser("key", EXAMPLE)
    parser.add_argument("name", metavar="NAME", help="name of the key, for the server's log")
    parser.add_argument("file", metavar="FILE", type=Path, help="key file, made if it does not exist")
    parser.add_argument(
        "--role",
        type=Role,
        choices=list(Role),
        default=Role.CLIENT,
        help="client opens the API (the default); metrics opens /metrics and the expert load; admin opens "
        "everything, and may switch the routing",
    )
    return parser


def key(arguments: Sequence[str]) -> int:
    """Print a new key, of which the file keeps only the digest; the exit status."""
    own = key_parser().parse_args(list(arguments))
    try:
        print(add_key(own.file, own.name, own.role))
    except (ValueError, OSError) as error:
        return fail(str(error))
    return 0
