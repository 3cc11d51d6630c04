"""The arguments of `prismoe serve`: prismoe's own are read here, without importing vLLM, which is slow."""

import argparse
from collections.abc import Sequence

from prismoe.model_plugins.routing.setting import ShadowSetting
from prismoe.model_plugins.worker.settings import CodeSettings, LogSettings, MetricsSettings
from prismoe.server.access.settings import AccessSettings
from prismoe.server.commands.parser import add_options, command_parser
from prismoe.server.health.settings import HealthSettings
from prismoe.server.limits.settings import LimitSettings
from prismoe.server.media.settings import MediaSettings
from prismoe.server.settings import ServeSettings

USAGE = "[MODEL] [options] [any vLLM option]"
EXAMPLE = """\
Qwen/Qwen3-VL-30B-A3B-Instruct --port 8001 --expert-metrics full

MODEL is a folder or a name on the Hugging Face Hub. Without it, the bundled model is served.
vLLM's options work, too: `prismoe serve --help=all` lists them.
"""
GROUPS = {
    "Metrics": MetricsSettings,
    "Access": AccessSettings,
    "Limits": LimitSettings,
    "Health": HealthSettings,
    "Images and videos": MediaSettings,
}


def serve_settings(arguments: Sequence[str]) -> ServeSettings:
    """Return the settings in the arguments of `prismoe serve`, with vLLM's options as `engine_options`."""
    parser = serve_parser()
    if arguments and arguments[0] in ("-h", "--help"):
        parser.print_help()
        raise SystemExit(0)
    # MODEL must come first. Otherwise the value of one of vLLM's options could be read as MODEL.
    model = [] if not arguments or arguments[0].startswith("-") else [arguments[0]]
    own, engine_options = parser.parse_known_args(list(arguments[len(model) :]))
    return ServeSettings.model_validate(
        {"engine_options": tuple(engine_options)} | ({"model": model[0]} if model else {}) | vars(own)
    )


def serve_parser() -> argparse.ArgumentParser:
    """Return the parser of prismoe's own options. vLLM answers --help=all."""
    parser = command_parser("serve", EXAMPLE, usage=USAGE, add_help=False)
    parser.add_argument("--model", help="the same as MODEL")
    add_options(parser, ShadowSetting)
    add_options(parser, CodeSettings)
    add_options(parser, LogSettings)
    for title, settings in GROUPS.items():
        add_options(parser.add_argument_group(title), settings)
    return parser
