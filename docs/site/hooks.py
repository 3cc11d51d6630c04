"""Turns Markdown that is written for the repository into pages of the site."""

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).parents[2]
TOP = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "threat-model.md",
}
"""The pages outside docs/, and their names on the site."""

FENCE = re.compile(r"^( *```.*?^ *```$)", re.M | re.S)
LINK = re.compile(r"\[(?P<text>[^\]]*)\]\((?!\w+:|#)(?P<target>[^)#\s]+)(?P<anchor>#[^)]*)?\)")
IMAGE = re.compile(r'(?P<name>src|srcset)="(?!\w+:)(?P<target>[^"]+)"')


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages outside docs/."""
    for name, page in TOP.items():
        files.append(File.generated(config, page, content=(REPOSITORY / name).read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files, **_: Any) -> str:
    """Make links lead to the site's pages, and links to source files lead to the repository.

    Without `repo_url`, a link to a source file becomes plain text that shows the path as a tooltip. Mermaid
    diagrams are left out, because the theme loads the script that draws them from another host.
    """
    here = page.file.src_uri
    above = {site: name for name, site in TOP.items()}
    source = REPOSITORY / above.get(here, f"docs/{here}")

    def link(match: re.Match[str]) -> str:
        path = _in_repository(source.parent / match["target"])
        if site := _on_site(path, here):
            return f"[{match['text']}]({site}{match['anchor'] or ''})"
        if config.repo_url:
            return f"[{match['text']}]({config.repo_url.rstrip('/')}/blob/HEAD/{path}{match['anchor'] or ''})"
        return f'<abbr title="{path}">{match["text"]}</abbr>'

    def image(match: re.Match[str]) -> str:
        return f'{match["name"]}="{_on_site(_in_repository(source.parent / match["target"]), here)}"'

    parts = FENCE.split(markdown)
    parts[::2] = [IMAGE.sub(image, LINK.sub(link, part)) for part in parts[::2]]
    return "".join(part for part in parts if not part.startswith("```mermaid"))


def _in_repository(target: Path) -> str:
    return Path(os.path.normpath(target)).relative_to(REPOSITORY).as_posix()


def _on_site(path: str, here: str) -> str | None:
    """The relative link from the page `here` to a file of the repository; None if the site lacks the file."""
    if path in TOP:
        return os.path.relpath(TOP[path], Path(here).parent)
    if path.startswith("docs/") and (REPOSITORY / path).is_file():
        return os.path.relpath(path.removeprefix("docs/"), Path(here).parent)
    return None
