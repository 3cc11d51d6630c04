"""`prismoe key`: add a key to a file for `prismoe serve --api-keys-file`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from prismoe.server.access.keys import Role, add_key
from prismoe.server.errors import fail


def key(arguments: Sequence[str]) -> int:
    """Print a new key, of which the file keeps only the digest; the exit status."""
    parser = argparse.ArgumentParser(
        prog="prismoe key",
        description="Make a key, print it once, and add its name and SHA-256 digest to FILE. A server that "
        "reads the file knows it at once. Delete a line to take its key back.",
        allow_abbrev=False,
    )
    parser.add_argument("name", metavar="NAME", help="whose key it is, for the log")
    parser.add_argument("file", metavar="FILE", type=Path)
    parser.add_argument(
        "--role",
        type=Role,
        choices=list(Role),
        default=Role.CLIENT,
        help="client: opens what clients use (the default); metrics: opens /metrics and the expert load; "
        "admin: opens everything, and may switch the routing",
    )
    own = parser.parse_args(list(arguments))
    try:
        print(add_key(own.file, own.name, own.role))
    except (ValueError, OSError) as error:
        return fail(str(error))
    return 0
