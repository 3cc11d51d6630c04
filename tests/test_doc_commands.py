"""Each command of the pages is listed in doc_commands.py, and a program that is here knows its arguments."""

import ast
import json
import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from vllm.utils.argparse_utils import FlexibleArgumentParser

from prismoe.model_plugins.routing.registry import choose_routing
from prismoe.model_plugins.vllm_seams.front.cli_args import make_arg_parser
from prismoe.server.commands.parser import parser_of
from tests.doc_commands import (
    BLOCK,
    COMMANDS,
    FROM_THE_PAGE,
    IN_OTHER_WORDS,
    KEYS,
    PAGES,
    commands_of,
    documented,
    key_of,
    shell,
)
from tests.paths import REPOSITORY
from tests.test_programs import parser_of_program

LANGUAGES = {"dockerfile", "json", "mermaid", "promql", "python", "sh", "text", "toml", "yaml"}
MADE = re.compile(r"^\S*/(python -m prismoe\..*|prismoe .*)$", re.M)
LAYERS, EXPERTS, K = 48, 128, 8
"""Of Qwen3-VL-30B-A3B."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_block_names_its_language(page: Path) -> None:
    """So no command hides in a block that is not read."""
    fences = re.findall(r"^\s*```(.*)", page.read_text(), re.M)
    assert set(fences[::2]) <= LANGUAGES and set(fences[1::2]) <= {""}
    assert fences.count("sh") == len(BLOCK.findall(page.read_text()))


def test_a_block_is_read_as_a_shell_reads_it() -> None:
    block = "a  # one\nb --two \\\n  'three\n4' |\n  c\n\n# five\nD=6 e &&\nf\n"
    assert commands_of(block) == ["a", "b --two 'three 4' | c", "D=6 e && f"]


def test_each_command_is_listed() -> None:
    unlisted = [command for command in COMMANDS if key_of(command) is None]
    assert unlisted == [], "Add them to a table of tests/doc_commands.py."
    assert [key for key in KEYS if not documented(key)] == [], "No page has these any more."
    assert len(KEYS) == len(set(KEYS))


@pytest.mark.parametrize(("key", "test"), [*FROM_THE_PAGE.items(), *IN_OTHER_WORDS.items()])
def test_each_test_exists_and_takes_its_commands_from_the_page(key: str, test: str) -> None:
    file, _, name = test.partition("::")
    nodes = list(ast.walk(ast.parse((REPOSITORY / file).read_text())))
    assert name in {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    asked = {
        node.args[0].value
        for node in nodes
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "documented"
        and isinstance(node.args[0], ast.Constant)
    }
    assert (key in asked) == (key in FROM_THE_PAGE)


def programs(command: str) -> list[list[str]]:
    """The words of each program that a command runs, without the variables before it."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars="&|")
    lexer.whitespace_split = True
    found: list[list[str]] = [[]]
    for word in lexer:
        if word in ("&&", "|", "&"):
            found.append([])
        elif found[-1] or not re.match(r"\w+=", word):
            found[-1].append(word)
    return found


PROGRAMS = [words for command in COMMANDS for words in programs(command) if words]


def used(*beginning: str) -> list[list[str]]:
    """What follows these words, of each program that begins so."""
    found = [words[len(beginning) :] for words in PROGRAMS if (*words[: len(beginning)],) == beginning]
    assert found
    return found


def parse(arguments: list[str]) -> None:
    """Ends the process where a command of prismoe's does not take these arguments."""
    name, *arguments = arguments
    _, rest = parser_of(name).parse_known_args(arguments)
    if name == "serve":
        make_arg_parser(FlexibleArgumentParser()).parse_args(rest)
    else:
        assert rest == []


@pytest.mark.parametrize("arguments", used("prismoe"), ids=" ".join)
def test_prismoe_takes_the_arguments(arguments: list[str]) -> None:
    parse(arguments)


@pytest.mark.parametrize("arguments", used("vllm", "serve"), ids=" ".join)
def test_vllm_takes_the_arguments(arguments: list[str]) -> None:
    make_arg_parser(FlexibleArgumentParser()).parse_args(arguments)


@pytest.mark.parametrize(
    "routing",
    [
        value
        for name, *arguments in used("prismoe")
        for option, value in pairwise(arguments)
        if name != "calibrate" and option in ("--routing", "--shadow")
        if value[0] != "@" and "native" not in value
    ],
)
def test_a_large_model_takes_the_routing(routing: str) -> None:
    choose_routing(json.loads(routing), None, K, dict.fromkeys(range(LAYERS), EXPERTS))


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize(
    "arguments", [words for words in used("python", "-m") if words[0].startswith("prismoe.")], ids=" ".join
)
def test_a_program_takes_the_arguments(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    parser_of_program(arguments[0], monkeypatch).parse_args(arguments[1:])


@pytest.mark.parametrize("arguments", used("make"), ids=" ".join)
def test_make_and_what_it_runs_take_the_arguments(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["make", "--dry-run", *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    made = [shlex.split(line) for line in MADE.findall(done.stdout)]
    assert made or arguments[0] not in ("demo", "load")
    for program, *words in made:
        if program == "prismoe":
            parse(words)
        else:
            given = [word.replace("PID", "1") for word in words[2:]]
            parser_of_program(words[1], monkeypatch).parse_args(given)


@pytest.mark.parametrize("arguments", used("docker", "compose"), ids=" ".join)
def test_compose_takes_the_options_and_files(arguments: list[str]) -> None:
    compose = Path(sys.executable).with_name("docker-compose")
    [name] = {"run", "up"} & set(arguments)
    helps = [subprocess.check_output([compose, *words, "--help"], text=True) for words in ([], [name])]
    known = set(re.findall(r"--[a-z][\w-]*", "".join(helps)))
    assert {word for word in arguments if word.startswith("--")} <= known
    assert all((REPOSITORY / "deploy" / word).is_file() for word in arguments if word.endswith(".yaml"))


@pytest.mark.slow
def test_one_test() -> None:
    [command] = documented(".venv/bin/python -m pytest tests/kernels/test_routing.py")
    assert re.search(r"^\d+ passed", shell(command.replace(".venv/bin/", ""), REPOSITORY), re.M)
