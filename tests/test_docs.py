"""The documents' links lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\((?!https?://)([^)#]+)[^)]*\)|(?:src|srcset)=\"(?!https?://)([^\"]+)\"")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_link_leads_to_a_file_or_folder(page: Path) -> None:
    targets = [target for groups in LINK.findall(page.read_text()) for target in groups if target]
    assert targets or page.name == "inspector.md"
    assert not [target for target in targets if not (page.parent / target).exists()]
