"""Makes pages of the site out of Markdown that is written for the repository."""

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
"""The pages that lie above docs/, and their names on the site."""

FENCE = re.compile(r"^( *```.*?^ *```$)", re.M | re.S)
LINK = re.compile(r"\[(?P<text>[^\]]*)\]\((?!\w+:|#)(?P<target>[^)#\s]+)(?P<anchor>#[^)]*)?\)")
IMAGE = re.compile(r'(?P<name>src|srcset)="(?!\w+:)(?P<target>[^"]+)"')


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages above docs/."""
    for name, page in TOP.items():
        files.append(File.generated(config, page, content=(REPOSITORY / name).read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files, **_: Any) -> str:
    """Have links lead to the site's pages, and those to source files to the repository.

    Where `repo_url` does not say where that is, such a link is its text, which tells the path when one points
    at it. Mermaid's pictures are left to the repository: the theme loads what draws them from another host.
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
    """The way to a file of the repository from the page `here`; None where the site lacks it."""
    if path in TOP:
        return os.path.relpath(TOP[path], Path(here).parent)
    if path.startswith("docs/") and (REPOSITORY / path).is_file():
        return os.path.relpath(path.removeprefix("docs/"), Path(here).parent)
    return None
