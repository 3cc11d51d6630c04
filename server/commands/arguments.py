"""`prismoe serve`'s arguments: its own are read here; the rest is left to vLLM, which is slow to import."""

import argparse
from collections.abc import Sequence

from pydantic import BaseModel

from prismoe.model_plugins.worker.settings import MetricsSettings
from prismoe.server.access.settings import AccessSettings
from prismoe.server.health.settings import LifeSettings
from prismoe.server.limits.settings import LimitSettings
from prismoe.server.media.settings import MediaSettings
from prismoe.server.settings import CodeSettings, ServeSettings

USAGE = "prismoe serve [MODEL] [options] [any vLLM option]"

EPILOG = """\
Any option of vLLM's server may follow, such as --port 8001 or --max-model-len 1024.
`prismoe serve --help=all` lists them; they take a few seconds to load.
"""


def serve_settings(arguments: Sequence[str]) -> ServeSettings:
    """Split `prismoe serve`'s arguments into its own settings and vLLM's options."""
    parser = _parser()
    if arguments and arguments[0] in ("-h", "--help"):
        parser.print_help()
        raise SystemExit(0)
    # MODEL comes first, so that the value of an option of vLLM's is never taken for it.
    model = [] if not arguments or arguments[0].startswith("-") else [arguments[0]]
    own, engine_options = parser.parse_known_args(list(arguments[len(model) :]))
    return ServeSettings.model_validate(
        {"engine_options": tuple(engine_options)} | ({"model": model[0]} if model else {}) | vars(own)
    )


def _parser() -> argparse.ArgumentParser:
    """The options that `serve` adds to vLLM's. An option that is not given stays unset."""
    parser = argparse.ArgumentParser(
        prog="prismoe serve",
        usage=USAGE,
        description="Serve MODEL (a folder; without it, the bundled one) over HTTP.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument(
        "--routing",
        metavar="JSON",
        help='how to route, instead of what the checkpoint says, e.g. {"policy": "topk"}; or @FILE',
    )
    parser.add_argument(
        "--shadow",
        metavar="JSON",
        help="a policy that is counted and routes nothing, while the model routes by itself; or @FILE",
    )
    parser.add_argument("--model", help="the same as MODEL")
    _add_options(parser, CodeSettings)
    _add_options(parser.add_argument_group("Metrics"), MetricsSettings)
    _add_options(parser.add_argument_group("Access"), AccessSettings)
    _add_options(parser.add_argument_group("Limits"), LimitSettings)
    _add_options(parser.add_argument_group("Health"), LifeSettings)
    _add_options(parser.add_argument_group("Images and videos"), MediaSettings)
    return parser


def _add_options(group: argparse._ActionsContainer, settings: type[BaseModel]) -> None:
    """An option for each setting. Their values are checked by the model, not here."""
    for name, field in settings.model_fields.items():
        option = "--" + name.replace("_", "-")
        if field.annotation is bool:
            group.add_argument(option, action="store_true", help=field.description)
        else:
            default = "" if field.default is None else f" (default: {field.default or 'none'})"
            unit = name.split("_per_")[0].split("_")[-1].upper()
            group.add_argument(option, metavar=unit, help=f"{field.description}{default}")
