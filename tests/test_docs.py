"""The documents' links have targets, and their commands exist."""

import re
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
from vllm.utils.argparse_utils import FlexibleArgumentParser

from prismoe.model_plugins.vllm_seams.front.cli_args import make_arg_parser
from prismoe.server.commands.parser import COMMANDS, parser_of
from tests.doc_commands import PAGES
from tests.paths import REPOSITORY

TARGET = re.compile(r"(?:^|`)make ([a-z-]+)", re.M)
MODULE = re.compile(r"python -m ((?:prismoe|tests)[\w.]+)")
LINK = re.compile(r"\]\((?!https?://)([^)#]+)[^)]*\)|(?:src|srcset)=\"(?!https?://)([^\"]+)\"")

USE = re.compile(rf"\b(vllm serve|prismoe (?:{'|'.join(COMMANDS)})) ([^`\n]+)")
OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_link_has_a_target(page: Path) -> None:
    targets = [target for groups in LINK.findall(page.read_text()) for target in groups if target]
    assert targets or page.name == "inspector.md"
    assert not [target for target in targets if not (page.parent / target).exists()]


def test_each_command_exists() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    targets, modules = set(TARGET.findall(text)), set(MODULE.findall(text))
    assert {"demo", "load"} <= targets and "prismoe.loadtests.two_servers" in modules
    assert targets <= set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.M))
    assert [module for module in modules if find_spec(module) is None] == []


def test_each_option_of_a_command_exists() -> None:
    """Also of a command in a sentence. An option may be vLLM's where the command takes those."""
    vllms = make_arg_parser(FlexibleArgumentParser())._option_string_actions.keys()
    known = {f"prismoe {name}": {"--help", *parser_of(name)._option_string_actions} for name in COMMANDS}
    known["prismoe demo"] |= known["prismoe serve"]
    for name in ("demo", "serve", "calibrate", "evaluate"):
        known[f"prismoe {name}"] |= vllms
    known["vllm serve"] = set(vllms)
    text = "\n".join(page.read_text() for page in PAGES).replace("\\\n", " ")
    used = [(command, option) for command, rest in USE.findall(text) for option in OPTION.findall(rest)]
    assert {"vllm serve", "prismoe serve", "prismoe check", "prismoe convert"} <= {use for use, _ in used}
    assert [(command, option) for command, option in used if option not in known[command]] == []


def test_make_without_a_target_lists_all_targets() -> None:
    listed = subprocess.run(
        ["make", "--no-print-directory"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout
    [targets] = re.findall(r"^.PHONY: (.*)", (REPOSITORY / "Makefile").read_text(), re.M)
    assert sorted(line.split()[0] for line in listed.splitlines()) == sorted(targets.split())
    assert all(len(line.split()) > 1 for line in listed.splitlines())
