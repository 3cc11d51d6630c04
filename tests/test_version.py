"""pyproject.toml has the version, and all other places have the same."""

import re

import pytest
import yaml

from tests.paths import REPOSITORY
from tests.project import PROJECT

VERSION = PROJECT["version"]
IMAGE = re.compile(r"\bprismoe:(\d[\w.]*)-c(?:pu|uda)\b")
FILES_WITH_IMAGES = [
    "deploy/Dockerfile.cpu",
    "deploy/Dockerfile.cuda",
    "deploy/compose.yaml",
    "deploy/cpu.yaml",
    "docs/deploy.md",
]


@pytest.mark.parametrize("file", FILES_WITH_IMAGES)
def test_an_image_has_the_projects_version(file: str) -> None:
    assert set(IMAGE.findall((REPOSITORY / file).read_text())) == {VERSION}


def test_no_other_file_names_an_image() -> None:
    files = [file for folder in ("deploy", "docs") for file in (REPOSITORY / folder).rglob("*.*")]
    texts = {file: file.read_text(errors="ignore") for file in files if file.is_file()}
    naming = {file.relative_to(REPOSITORY).as_posix() for file, text in texts.items() if IMAGE.search(text)}
    assert naming == set(FILES_WITH_IMAGES)


def test_the_chart_has_the_projects_version() -> None:
    chart = yaml.safe_load((REPOSITORY / "deploy" / "kubernetes" / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == VERSION


def test_the_changelog_starts_with_the_projects_version() -> None:
    text = (REPOSITORY / "CHANGELOG.md").read_text()
    assert re.findall(r"^## \[(.+?)\]", text, re.M)[0] == VERSION


def test_the_citation_has_the_projects_version_and_required_fields() -> None:
    """Citation File Format 1.2.0."""
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert citation["version"] == VERSION and citation["license"] == PROJECT["license"]
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
