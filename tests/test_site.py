"""The docs as a site: every link and anchor has a target, and nothing is loaded from another host."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.paths import REPOSITORY

CONFIG = REPOSITORY / "docs" / "site" / "mkdocs.yml"
LOADED = re.compile(
    r"<(?:script|link|img|source|iframe)\b[^>]*?\b(?:src|srcset|href)=[\"']?((?:https?:)?//[^\"' >]+)"
)
IMPORTED = re.compile(r"@import|url\([\"']?(?:https?:)?//")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built like `make docs` does. It fails on warnings."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(CONFIG)]
    built = subprocess.run(
        [*command, "--site-dir", str(folder)],
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0 and "WARNING" not in built.stderr, built.stderr
    return folder


def test_no_page_loads_from_another_host(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    assert {page.name: found for page in pages if (found := LOADED.findall(page.read_text()))} == {}
    sheets = list(site.rglob("*.css"))
    assert sheets and not [sheet.name for sheet in sheets if IMPORTED.search(sheet.read_text())]


def test_each_page_of_the_docs_exists(site: Path) -> None:
    docs = REPOSITORY / "docs"
    for page in docs.rglob("*.md"):
        name = page.relative_to(docs).with_suffix(".html").as_posix()
        assert (site / name.replace("README.html", "index.html")).is_file(), name
    assert not (site / "site").exists()


def test_a_link_between_pages_and_one_to_a_source_file(site: Path) -> None:
    contributing = (site / "contributing.html").read_text()
    assert 'href="routers.html#adding-one"' in contributing
    assert '<abbr title="model_plugins/routing/registry.py">registry.py</abbr>' in contributing
    assert 'src="pictures/inspector-light.png"' in (site / "index.html").read_text()
    assert 'href="threat-model.html"' in (site / "index.html").read_text()


def on_site(markdown: str, page: str, repo_url: str | None = None) -> str:
    spec = importlib.util.spec_from_file_location("hooks", CONFIG.with_name("hooks.py"))
    assert spec is not None and spec.loader is not None
    hooks: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    of_page = SimpleNamespace(file=SimpleNamespace(src_uri=page))
    return str(hooks.on_page_markdown(markdown, of_page, SimpleNamespace(repo_url=repo_url), None))


@pytest.mark.parametrize(
    ("page", "markdown", "made"),
    [
        ("routers.md", "[a](../README.md#run-it)", "[a](index.md#run-it)"),
        ("reference/routes.md", "[a](../metrics.md)", "[a](../metrics.md)"),
        ("reference/routes.md", "[a](../../SECURITY.md)", "[a](../threat-model.md)"),
        ("index.md", "[a](docs/metrics.md#x) [b](#y)", "[a](metrics.md#x) [b](#y)"),
        ("index.md", "[a](https://arxiv.org/abs/1)", "[a](https://arxiv.org/abs/1)"),
        ("index.md", "[a](server)", "[a](https://git.example/p/blob/HEAD/server)"),
        ("routers.md", "[a](../server/errors.py)", "[a](https://git.example/p/blob/HEAD/server/errors.py)"),
        ("index.md", "```sh\n[a](server)\n```", "```sh\n[a](server)\n```"),
        ("index.md", "a\n```mermaid\nflowchart\n```\nb", "a\n\nb"),
    ],
)
def test_links_lead_to_the_site_or_the_repository(page: str, markdown: str, made: str) -> None:
    assert on_site(markdown, page, "https://git.example/p/") == made
