"""The `prismoe` command."""

import argparse
import sys
from collections.abc import Sequence

from pydantic import ValidationError

from prismoe.server.arguments import serve_settings
from prismoe.server.demo import demo
from prismoe.server.sentences import fail, sentence
from prismoe.server.serve import serve

DESCRIPTION = (
    "Serve mixture-of-experts vision-language models whose router knows the modality of every token."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    command, rest = parser.parse_args(arguments[:1]).command, arguments[1:]
    try:
        return serve(serve_settings(rest)) if command == "serve" else demo(rest)
    except ValidationError as error:
        return fail(sentence(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="prismoe", description=DESCRIPTION)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    commands.add_parser("serve", help="serve a model over the OpenAI API", add_help=False)
    commands.add_parser(
        "demo", help="serve the bundled model and ask it about three pictures", add_help=False
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
