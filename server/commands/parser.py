"""The list of the commands of `prismoe`, and functions that make their parsers."""

import argparse
import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

if TYPE_CHECKING:
    from pydantic import BaseModel


@dataclass(frozen=True)
class Command:
    """A command. `module` is in this package, and has the functions NAME, which runs it, and NAME_parser."""

    module: str
    purpose: str


COMMANDS = {
    "demo": Command("demo", "serve the bundled model and ask it about three pictures"),
    "serve": Command("serve", "serve a model over the OpenAI API, and export its expert load by modality"),
    "top": Command("top", "show the expert load of a running server in the terminal"),
    "key": Command("key", "make an API key and add its digest to a key file"),
    "check": Command("tools", "load a checkpoint and report its properties and its routing"),
    "convert": Command("tools", "write a checkpoint as one folder that needs no other files"),
    "calibrate": Command("tools", "fit a routing policy to a model, with pictures and questions"),
    "evaluate": Command(
        "tools", "ask a model the same questions under several routings, and compare the answers"
    ),
    "completion": Command("completion", "print a script that completes commands and options in your shell"),
}


def parser_of(name: str) -> argparse.ArgumentParser:
    """Return a command's parser."""
    module = importlib.import_module(f"{__package__}.{COMMANDS[name].module}")
    parser: argparse.ArgumentParser = getattr(module, f"{name}_parser")()
    return parser


def command_parser(
    name: str, example: str, *, usage: str | None = None, add_help: bool = True
) -> argparse.ArgumentParser:
    """Return a parser for a command. Its help has the purpose and an example. It sets no defaults."""
    purpose = COMMANDS[name].purpose
    return argparse.ArgumentParser(
        prog=f"prismoe {name}",
        usage=usage and f"prismoe {name} {usage}",
        description=f"{purpose[0].upper()}{purpose[1:]}.",
        epilog=f"example:\n  prismoe {name} {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        add_help=add_help,
    )


def add_options(group: argparse._ActionsContainer, settings: "type[BaseModel]") -> None:
    """Add an option for each field of `settings` that has a description, those of base classes last.

    A field's title is the name of the option's value in the help. A required field with a title becomes a
    positional argument. The settings' model checks the values, not the parser.
    """
    fields = settings.model_fields.items()
    for name, field in sorted(fields, key=lambda item: item[0] not in settings.__annotations__):
        if field.description is None:
            continue
        option = "--" + name.replace("_", "-")
        default = "" if field.is_required() or field.default in (None, ()) else f" (default: {field.default})"
        text = field.description + ("" if "(default: " in field.description else default)
        metavar = field.title or _choices(field.annotation) or name.split("_per_")[0].split("_")[-1].upper()
        if field.annotation is bool:
            group.add_argument(option, action="store_true", help=field.description)
        elif field.is_required() and field.title:
            group.add_argument(name, metavar=metavar, help=text)
        else:
            group.add_argument(option, metavar=metavar, required=field.is_required(), help=text)


def _choices(annotation: Any) -> str:
    """Return the values of a Literal in the form that help shows; empty for other types."""
    for kind in (annotation, *get_args(annotation)):
        if get_origin(kind) is Literal:
            return "{" + ",".join(get_args(kind)) + "}"
    return ""
