"""`prismoe check`, `convert`, `calibrate` and `evaluate`: their arguments, and how they end."""

import argparse
import signal
from collections.abc import Callable, Sequence

from prismoe.model_plugins.plugin import add_to_vllm_plugins
from prismoe.model_plugins.processes import ask_to_end_with_parent
from prismoe.model_plugins.tools.settings import (
    CalibrateSettings,
    CheckSettings,
    ConvertSettings,
    EvaluateSettings,
)
from prismoe.server.commands.parser import add_options, command_parser
from prismoe.server.errors import fail, sentence

INTERRUPTED = 128 + signal.SIGINT


def check_parser() -> argparse.ArgumentParser:
    """Of `prismoe check`."""
    parser = command_parser(
        "check",
        """\
LanguageBind/MoE-LLaVA-Phi2-2.7B-4e --json

The exit status is 1 where the checkpoint can't be loaded, or is too far from the file of --against.
""",
    )
    add_options(parser, CheckSettings)
    parser.add_argument("--json", dest="as_json", action="store_true", help="print one JSON object")
    return parser


def check(arguments: Sequence[str]) -> int:
    """Report what a checkpoint is; 1 where it can't be loaded or a tolerance is broken."""
    settings = CheckSettings.model_validate(vars(check_parser().parse_args(arguments)))

    def run() -> int:
        from prismoe.model_plugins.tools.check.check import check

        return check(**dict(settings))

    return _end(run)


def convert_parser() -> argparse.ArgumentParser:
    """Of `prismoe convert`."""
    parser = command_parser("convert", "LanguageBind/MoE-LLaVA-Phi2-2.7B-4e my-checkpoint --dtype bfloat16")
    add_options(parser, ConvertSettings)
    return parser


def convert(arguments: Sequence[str]) -> int:
    """Write a self-contained checkpoint; 1 where that can't be done."""
    settings = ConvertSettings.model_validate(vars(convert_parser().parse_args(arguments)))

    def run() -> int:
        from prismoe.model_plugins.tools.convert.convert import convert

        return convert(**dict(settings))

    return _end(run)


def calibrate_parser() -> argparse.ArgumentParser:
    """Of `prismoe calibrate`."""
    parser = command_parser(
        "calibrate",
        """\
my-checkpoint calibrated --policy dual_threshold --skip-overall 0.3

An interrupted calibration goes on where it stopped when the same command runs again.
""",
        usage="MODEL DST --policy POLICY [options] [any option of vLLM's engine]",
    )
    add_options(parser, CalibrateSettings)
    return parser


def calibrate(arguments: Sequence[str]) -> int:
    """Write a checkpoint with a fitted router, or settings for one; 1 where that can't be done."""
    own, engine_options = calibrate_parser().parse_known_args(arguments)
    settings = CalibrateSettings.model_validate({**vars(own), "engine_options": engine_options})

    def run() -> int:
        from prismoe.model_plugins.tools.calibrate.calibrate import calibrate

        return calibrate(settings)

    return _end(run)


def evaluate_parser() -> argparse.ArgumentParser:
    """Of `prismoe evaluate`."""
    parser = command_parser(
        "evaluate",
        """\
my-checkpoint --routing '{"policy": "native"}' --routing '{"policy": "top_any"}'

It prints, for each routing, the right answers, the difference to the first routing, and the experts used.
""",
        usage="MODEL [options] [any option of vLLM's engine]",
    )
    add_options(parser, EvaluateSettings)
    parser.add_argument(
        "--routing",
        metavar="JSON",
        action="append",
        help='a routing to compare, as for `prismoe serve`; repeat it for more; {"policy": "native"} is the '
        "checkpoint's own (default: that alone)",
    )
    parser.add_argument(
        "--json", dest="json_file", metavar="FILE", help="write the results and all answers to this file, too"
    )
    return parser


def evaluate(arguments: Sequence[str]) -> int:
    """Print a table of routings; 1 where one of them can't be run."""
    parser = evaluate_parser()
    if arguments and arguments[0].startswith("-") and arguments[0] not in ("-h", "--help"):
        parser.error("MODEL comes first, so that the value of an option is not taken for it")
    own, engine_options = parser.parse_known_args(arguments)
    settings = EvaluateSettings.model_validate({**vars(own), "engine_options": engine_options})

    def run() -> int:
        from prismoe.model_plugins.tools.evaluate.evaluate import evaluate

        return evaluate(settings)

    return _end(run)


def _end(run: Callable[[], int]) -> int:
    """The exit status of a command that cleans up when it is interrupted, and whose errors are sentences."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    ask_to_end_with_parent()
    add_to_vllm_plugins()
    try:
        return run()
    except KeyboardInterrupt:
        return INTERRUPTED
    except (ValueError, OSError) as error:
        return fail(sentence(error))
