"""`prismoe serve`'s arguments: its own are read here; the rest is left to vLLM, which is slow to import."""

import argparse
from collections.abc import Sequence

from prismoe.model_plugins.routing.setting import ShadowSetting
from prismoe.model_plugins.worker.settings import CodeSettings, LogSettings, MetricsSettings
from prismoe.server.access.settings import AccessSettings
from prismoe.server.commands.parser import add_options, command_parser
from prismoe.server.health.settings import LifeSettings
from prismoe.server.limits.settings import LimitSettings
from prismoe.server.media.settings import MediaSettings
from prismoe.server.settings import ServeSettings

USAGE = "[MODEL] [options] [any vLLM option]"
EXAMPLE = """\
Qwen/Qwen3-VL-30B-A3B-Instruct --port 8001 --expert-metrics full

MODEL is a folder or a name on the Hugging Face Hub; without it, the bundled model is served.
Every option of vLLM's server works, too: `prismoe serve --help=all` lists them.
"""
GROUPS = {
    "Metrics": MetricsSettings,
    "Access": AccessSettings,
    "Limits": LimitSettings,
    "Health": LifeSettings,
    "Images and videos": MediaSettings,
}


def serve_settings(arguments: Sequence[str]) -> ServeSettings:
    """Split `prismoe serve`'s arguments into its own settings and vLLM's options."""
    parser = serve_parser()
    if arguments and arguments[0] in ("-h", "--help"):
        parser.print_help()
        raise SystemExit(0)
    # MODEL comes first, so that the value of an option of vLLM's is never taken for it.
    model = [] if not arguments or arguments[0].startswith("-") else [arguments[0]]
    own, engine_options = parser.parse_known_args(list(arguments[len(model) :]))
    return ServeSettings.model_validate(
        {"engine_options": tuple(engine_options)} | ({"model": model[0]} if model else {}) | vars(own)
    )


def serve_parser() -> argparse.ArgumentParser:
    """The options that `serve` adds to vLLM's, whose own --help=all stays vLLM's."""
    parser = command_parser("serve", EXAMPLE, usage=USAGE, add_help=False)
    parser.add_argument("--model", help="the same as MODEL")
    add_options(parser, ShadowSetting)
    add_options(parser, CodeSettings)
    add_options(parser, LogSettings)
    for title, settings in GROUPS.items():
        add_options(parser.add_argument_group(title), settings)
    return parser
