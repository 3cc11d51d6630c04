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
from prismoe.server.errors import fail, sentence

ROUTING_HELP = 'how to route, instead of what the checkpoint says, e.g. {"policy": "topk"}'
INTERRUPTED = 128 + signal.SIGINT


def check(arguments: Sequence[str]) -> int:
    """Report what a checkpoint is; 1 where it can't be loaded or a tolerance is broken."""
    parser = argparse.ArgumentParser(
        prog="prismoe check",
        description="Load a checkpoint and tell what it is, how it routes, whether all its tensors are used, "
        "and how far it is from a reference. Exit status: 0; 1 where it can't be loaded or is too far.",
    )
    parser.add_argument("model", metavar="MODEL", help="the checkpoint's folder, or its name on a hub")
    parser.add_argument(
        "--against",
        metavar="FILE",
        help="an .npz file of what the authors' code computed (input_ids, pixel_values, logits, …), to "
        "compare with in float32",
    )
    parser.add_argument("--routing", metavar="JSON", help=ROUTING_HELP)
    parser.add_argument("--json", dest="as_json", action="store_true", help="print one JSON object")
    parser.add_argument("--verbose", action="store_true", help="show vLLM's log on stderr")
    settings = CheckSettings.model_validate(vars(parser.parse_args(arguments)))

    def run() -> int:
        from prismoe.model_plugins.tools.check.check import check

        return check(**dict(settings))

    return _end(run)


def convert(arguments: Sequence[str]) -> int:
    """Write a self-contained checkpoint; 1 where that can't be done."""
    parser = argparse.ArgumentParser(
        prog="prismoe convert",
        description="Write the checkpoint SRC to the new folder DST, with its image tower, its tokenizer and "
        "its routing, so that DST can be served anywhere.",
    )
    parser.add_argument("source", metavar="SRC", help="the checkpoint's folder, or its name on a hub")
    parser.add_argument("destination", metavar="DST", help="a folder that is not there yet")
    parser.add_argument("--routing", metavar="JSON", help=ROUTING_HELP)
    parser.add_argument(
        "--dtype", choices=["bfloat16", "float16", "float32"], help="of the weights (default: as they are)"
    )
    parser.add_argument(
        "--max-shard-size", metavar="SIZE", default="4GB", help="of a weight file (default: 4GB)"
    )
    settings = ConvertSettings.model_validate(vars(parser.parse_args(arguments)))

    def run() -> int:
        from prismoe.model_plugins.tools.convert.convert import convert

        return convert(**dict(settings))

    return _end(run)


def calibrate(arguments: Sequence[str]) -> int:
    """Write a checkpoint with a fitted router, or settings for one; 1 where that can't be done."""
    parser = argparse.ArgumentParser(
        prog="prismoe calibrate",
        usage="prismoe calibrate MODEL DST --policy POLICY [options] [any option of vLLM's engine]",
        description="Fit a routing policy to MODEL by what its routers do with pictures and questions. Of a "
        "MoE-LLaVA the new folder DST gets the checkpoint with the policy in it; of another model that vLLM "
        "has the new file DST gets settings, for prismoe serve MODEL --routing @DST. Stopped, the same "
        "command goes on where it was.",
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help="the checkpoint's folder, or its name on a hub")
    parser.add_argument("destination", metavar="DST", help="a folder or file that is not there yet")
    parser.add_argument(
        "--policy",
        required=True,
        help="what to fit: ltdr, dual_threshold, entropy; in a MoE-LLaVA also equiroute, gmm",
    )
    parser.add_argument(
        "--routing", metavar="JSON", help='further settings of the policy, e.g. {"head_experts": 1}'
    )
    parser.add_argument(
        "--images",
        metavar="DIR",
        help="pictures like those that will be served (default: drawings that the bundled model learnt from)",
    )
    parser.add_argument(
        "--questions", metavar="FILE", help="what to ask about them, in turn, one a line (default: four)"
    )
    parser.add_argument("--max-images", metavar="N", default=256, help="use so many of them (default: 256)")
    parser.add_argument(
        "--skip-overall",
        metavar="SHARE",
        help="dual_threshold: of all expert uses, by a search for both thresholds (default: 0.25)",
    )
    parser.add_argument(
        "--skip", metavar="SHARE", help="dual_threshold: of vision expert uses, without a search"
    )
    parser.add_argument(
        "--skip-text", metavar="SHARE", help="dual_threshold: of text expert uses, without a search"
    )
    parser.add_argument(
        "--tail-share",
        metavar="SHARE",
        help="ltdr: of vision tokens above the threshold (default: as many as are above their image's mean)",
    )
    parser.add_argument(
        "--mean-experts",
        metavar="N",
        help="entropy: experts a token, on average (default: the checkpoint's k)",
    )
    parser.add_argument(
        "--run-checkpoint-code", action="store_true", help="run the Python files of the checkpoint"
    )
    parser.add_argument("--verbose", action="store_true", help="show vLLM's log on stderr")
    own, engine_options = parser.parse_known_args(arguments)
    settings = CalibrateSettings.model_validate({**vars(own), "engine_options": engine_options})

    def run() -> int:
        from prismoe.model_plugins.tools.calibrate.calibrate import calibrate

        return calibrate(settings)

    return _end(run)


def evaluate(arguments: Sequence[str]) -> int:
    """Print a table of routings; 1 where one of them can't be run."""
    parser = argparse.ArgumentParser(
        prog="prismoe evaluate",
        usage="prismoe evaluate MODEL [options] [any option of vLLM's engine]",
        description="Ask MODEL the same questions about pictures under several routings, one by one, "
        "and tell for each how many answers are right, how many more or fewer than under the first, and how "
        "many experts the tokens used.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help="the checkpoint's folder, or its name on a hub")
    parser.add_argument(
        "--routing",
        metavar="JSON",
        action="append",
        help='how to route, as for prismoe serve; may be given many times, and {"policy": "native"} is the '
        "checkpoint's own (default: that alone)",
    )
    parser.add_argument(
        "--questions",
        metavar="FILE",
        help='a JSON object a line: {"image": path relative to FILE, "question": text, "answer": text or '
        "list of accepted texts} (default: 30 about the six pictures that ship with the bundled model)",
    )
    parser.add_argument("--max-tokens", metavar="N", help="of an answer (default: 16)")
    parser.add_argument(
        "--json", dest="json_file", metavar="FILE", help="write the same and the answers to FILE, too"
    )
    parser.add_argument(
        "--run-checkpoint-code", action="store_true", help="run the Python files of the checkpoint"
    )
    parser.add_argument("--verbose", action="store_true", help="show vLLM's log on stderr")
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
