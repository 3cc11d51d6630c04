"""`prismoe check`, `convert`, `calibrate` and `evaluate`: their arguments and exit statuses."""

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
    """Return the parser of `prismoe check`."""
    parser = command_parser(
        "check",
        """\
LanguageBind/MoE-LLaVA-Phi2-2.7B-4e --json

The exit status is 1 if the checkpoint can't be loaded, or differs too much from the file of --against.
""",
    )
    add_options(parser, CheckSettings)
    parser.add_argument("--json", dest="as_json", action="store_true", help="print one JSON object")
    return parser


def check(arguments: Sequence[str]) -> int:
    """Report on a checkpoint. Returns the exit status: 1 if it can't be loaded, or exceeds a tolerance."""
    settings = CheckSettings.model_validate(vars(check_parser().parse_args(arguments)))

    def run() -> int:
        from prismoe.model_plugins.tools.check.check import check

        return check(**dict(settings))

    return _end(run)


def convert_parser() -> argparse.ArgumentParser:
    """Return the parser of `prismoe convert`."""
    parser = command_parser("convert", "LanguageBind/MoE-LLaVA-Phi2-2.7B-4e my-checkpoint --dtype bfloat16")
    add_options(parser, ConvertSettings)
    return parser


def convert(arguments: Sequence[str]) -> int:
    """Write a self-contained checkpoint. Returns the exit status: 1 if that fails."""
    settings = ConvertSettings.model_validate(vars(convert_parser().parse_args(arguments)))

    def run() -> int:
        from prismoe.model_plugins.tools.convert.convert import convert

        return convert(**dict(settings))

    return _end(run)


def calibrate_parser() -> argparse.ArgumentParser:
    """Return the parser of `prismoe calibrate`."""
    parser = command_parser(
        "calibrate",
        """\
my-checkpoint calibrated --policy dual_threshold --skip-overall 0.3

If a calibration is interrupted, the same command continues it.
""",
        usage="MODEL DST --policy POLICY [options] [any option of vLLM's engine]",
    )
    add_options(parser, CalibrateSettings)
    return parser


def calibrate(arguments: Sequence[str]) -> int:
    """Write a checkpoint with a fitted router, or its settings. Returns the exit status: 1 if that fails."""
    options, engine_options = calibrate_parser().parse_known_args(arguments)
    settings = CalibrateSettings.model_validate({**vars(options), "engine_options": engine_options})

    def run() -> int:
        from prismoe.model_plugins.tools.calibrate.calibrate import calibrate

        return calibrate(settings)

    return _end(run)


def evaluate_parser() -> argparse.ArgumentParser:
    """Return the parser of `prismoe evaluate`."""
    parser = command_parser(
        "evaluate",
        """\
my-checkpoint --routing '{"policy": "native"}' --routing '{"policy": "top_any"}'

For each routing it prints the correct answers, the difference from the first routing, and the used experts.
""",
        usage="MODEL [options] [any option of vLLM's engine]",
    )
    add_options(parser, EvaluateSettings)
    parser.add_argument(
        "--routing",
        metavar="JSON",
        action="append",
        help="a routing to compare, in the form of `prismoe serve --routing`; repeat the option for more "
        'routings; {"policy": "native"} is the checkpoint\'s own routing, and the default',
    )
    parser.add_argument(
        "--json", dest="json_file", metavar="FILE", help="also write the results and all answers to this file"
    )
    return parser


def evaluate(arguments: Sequence[str]) -> int:
    """Print a table that compares routings. Returns the exit status: 1 if one of them can't be run."""
    parser = evaluate_parser()
    if arguments and arguments[0].startswith("-") and arguments[0] not in ("-h", "--help"):
        parser.error("put MODEL first: after an option it could be read as the option's value")
    options, engine_options = parser.parse_known_args(arguments)
    settings = EvaluateSettings.model_validate({**vars(options), "engine_options": engine_options})

    def run() -> int:
        from prismoe.model_plugins.tools.evaluate.evaluate import evaluate

        return evaluate(settings)

    return _end(run)


def _end(run: Callable[[], int]) -> int:
    """Run a command and return its exit status. SIGTERM interrupts it like Ctrl-C, so that it cleans up."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    ask_to_end_with_parent()
    add_to_vllm_plugins()
    try:
        return run()
    except KeyboardInterrupt:
        return INTERRUPTED
    except (ValueError, OSError) as error:
        return fail(sentence(error))
