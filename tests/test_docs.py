"""The documents' links have targets, and their commands exist."""

import re
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
from vllm.utils.argparse_utils import FlexibleArgumentParser

from prismoe.model_plugins.vllm_seams.front.cli_args import make_arg_parser
from prismoe.server.commands.arguments import serve_parser
from tests.paths import REPOSITORY

TOP = ("CHANGELOG.md", "CONTRIBUTING.md", "README.md", "SECURITY.md")
PAGES = [*(REPOSITORY / name for name in TOP), *sorted((REPOSITORY / "docs").rglob("*.md"))]
TARGET = re.compile(r"(?:^|`)make ([a-z-]+)", re.M)
MODULE = re.compile(r"python -m ((?:prismoe|tests)[\w.]+)")
LINK = re.compile(r"\]\((?!https?://)([^)#]+)[^)]*\)|(?:src|srcset)=\"(?!https?://)([^\"]+)\"")

SERVE = re.compile(r"^(?:\w+=\S+ )*(vllm|prismoe) serve (.+?)(?:  # .*)?$", re.M)
OPTION = re.compile(r"(?<!\S)--[a-z][\w-]*")


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


def test_each_option_of_a_serve_command_exists() -> None:
    """vLLM's own parser checks them, and for `prismoe serve` also prismoe's."""
    vllms = make_arg_parser(FlexibleArgumentParser())._option_string_actions.keys()
    known = {"vllm": vllms, "prismoe": vllms | serve_parser()._option_string_actions.keys()}
    text = "\n".join(page.read_text() for page in PAGES).replace("\\\n", " ")
    used = {
        (server, option)
        for server, command in SERVE.findall(text)
        for option in OPTION.findall(command)
        if option not in known[server]
    }
    assert {"vllm", "prismoe"} == {server for server, _ in SERVE.findall(text)}
    assert used == set()


def test_make_without_a_target_lists_all_targets() -> None:
    listed = subprocess.run(["make"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    [targets] = re.findall(r"^.PHONY: (.*)", (REPOSITORY / "Makefile").read_text(), re.M)
    assert sorted(line.split()[0] for line in listed.splitlines()) == sorted(targets.split())
    assert all(len(line.split()) > 1 for line in listed.splitlines())
