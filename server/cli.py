"""The `prismoe` command."""

import argparse
import sys
from collections.abc import Callable, Sequence

from pydantic import ValidationError

from prismoe.server.access.key_command import key
from prismoe.server.arguments import serve_settings
from prismoe.server.demo import demo
from prismoe.server.sentences import fail, sentence
from prismoe.server.serve import serve
from prismoe.server.tools import calibrate, check, convert
from prismoe.server.top import top

DESCRIPTION = (
    "Serve mixture-of-experts vision-language models whose router knows the modality of every token."
)

COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "serve": lambda arguments: serve(serve_settings(arguments)),
    "demo": demo,
    "top": top,
    "key": key,
    "check": check,
    "convert": convert,
    "calibrate": calibrate,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    command, rest = parser.parse_args(arguments[:1]).command, arguments[1:]
    try:
        return COMMANDS[command](rest)
    except ValidationError as error:
        return fail(sentence(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="prismoe", description=DESCRIPTION)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    commands.add_parser("serve", help="serve a model over the OpenAI API", add_help=False)
    commands.add_parser(
        "demo", help="serve the bundled model and ask it about three pictures", add_help=False
    )
    commands.add_parser(
        "check", help="tell what a checkpoint is and how far it is from a reference", add_help=False
    )
    commands.add_parser(
        "convert", help="write a checkpoint that needs nothing beside its folder", add_help=False
    )
    commands.add_parser("calibrate", help="fit a routing policy to a checkpoint, by pictures", add_help=False)
    commands.add_parser("key", help="add a key to a file of those who may use a server", add_help=False)
    commands.add_parser("top", help="watch a running server's expert load by modality", add_help=False)
    return parser


if __name__ == "__main__":
    sys.exit(main())
