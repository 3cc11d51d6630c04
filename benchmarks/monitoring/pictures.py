"""Takes the README's pictures with a real browser: of a real server's inspector, and of other pages."""

import io
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, expect

from prismoe.benchmarks.monitoring.browser import running_browser
from prismoe.benchmarks.paths import REPOSITORY
from prismoe.loadtests.local_server import local_server

LOG = REPOSITORY / "build" / "monitoring" / "server.log"
SIZE = {"width": 1280, "height": 1000}
COLOURS = 128  # makes a file a third of its size without a visible difference


def main(folder: Path) -> None:
    """Write `inspector-light.png` and `inspector-dark.png` into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    LOG.parent.mkdir(parents=True, exist_ok=True)
    with local_server(LOG) as (url, _), running_browser() as browser:
        for scheme in ("light", "dark"):
            take(browser, url, scheme, folder / f"inspector-{scheme}.png")


def take(browser: Browser, url: str, scheme: str, file: Path) -> None:
    """Ask about a picture in the inspector, and write a screenshot of the page."""
    page = browser.new_page(viewport=SIZE, color_scheme=scheme)  # type: ignore[arg-type]
    page.goto(f"{url}/inspector")
    page.get_by_role("radio", name="jeans").check(force=True)
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("#load")).to_be_visible(timeout=60_000)
    page.get_by_role("slider", name="Layer").fill("1")
    page.locator("#stage-A").focus()
    for key in ["ArrowDown"] * 3 + ["ArrowRight"] * 3:
        page.keyboard.press(key)
    page.locator("#stage-A").blur()
    _save(page, file)


def take_page(html: str, folder: Path, name: str) -> None:
    """Write `NAME-light.png` and `NAME-dark.png` of a page without a server into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with running_browser() as browser:
        for scheme in ("light", "dark"):
            page = browser.new_page(viewport=SIZE, color_scheme=scheme)  # type: ignore[arg-type]
            page.set_content(html)
            _save(page, folder / f"{name}-{scheme}.png")


def _save(page: Page, file: Path) -> None:
    picture = Image.open(io.BytesIO(page.screenshot(full_page=True)))
    picture.convert("RGB").quantize(COLOURS).save(file, optimize=True)
    page.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
