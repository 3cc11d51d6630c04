"""The help of the programs for `python -m`: each option has a text, and the example parses."""

import argparse
import runpy
import shlex
import sys

import pytest

PROGRAMS = {
    "prismoe.benchmarks": (
        *("gpu_check", "kernels.bench", "kernels.tune", "monitoring", "serving", "serving.loading"),
        *("serving.native_cost", "serving.plugin_cost", "serving.routing_cost", "serving.scale"),
        *("serving.skip_gain", "skipping.accuracy"),
    ),
    "prismoe": ("loadtests", "loadtests.repeated_image", "loadtests.two_servers"),
    "prismoe.training": (
        *("comparison", "data.exam_files", "equiroute_experiment", "prismoji", "scores.measure"),
        "scores.score",
    ),
}
MODULES = [f"{package}.{name}" for package, names in PROGRAMS.items() for name in names]


class Asked(Exception):
    """Raised when a program parses its arguments."""


def parser_of_program(module: str, monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    """The parser that `python -m` of this module would ask for the arguments."""

    def ask(parser: argparse.ArgumentParser, *_: object) -> None:
        raise Asked(parser)

    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["program"])
        patch.setattr(argparse.ArgumentParser, "parse_args", ask)
        with pytest.raises(Asked) as asked:
            runpy.run_module(module, run_name="__main__")
    parser: argparse.ArgumentParser = asked.value.args[0]
    return parser


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("module", MODULES)
def test_the_help_has_an_example_that_parses(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parser = parser_of_program(module, monkeypatch)
    beginning = f"  python -m {module}"
    [example] = [line for line in parser.format_help().splitlines() if line.startswith(beginning)]
    parser.parse_args(shlex.split(example)[3:])
    assert [action.dest for action in parser._actions if not action.help] == []
