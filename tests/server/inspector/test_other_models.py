"""The inspector's page with models other than MoE-LLaVA, in a real browser, with made-up answers."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from prismoe.benchmarks.monitoring.browser import running_browser
from tests.network import network
from tests.server.inspector.made_up import (
    LAYERS,
    MODEL,
    ROUTING,
    WEIGHTS,
    inspection,
    medium,
    patches,
    serve,
    text,
)

expect.set_options(timeout=30_000)  # milliseconds, for a busy machine

WIDTHS = {1280: 900, 390: 844}
IMAGE = inspection(
    [medium("image", 1, 2, 3)], [text("See"), *patches("image", 1, 2, 3), text("?"), text("A")]
)
VIDEO_FRAMES = patches("video", 2, 1, 2)
VIDEO = inspection(
    [medium("video", 2, 1, 2)],
    [
        text("<0.5 seconds>"),
        *VIDEO_FRAMES[:2],
        text("<1.5 seconds>"),
        *VIDEO_FRAMES[2:],
        text("?"),
        text("A"),
    ],
)
NOWHERE = {"frame": None, "row": None, "column": None}
SOUND = inspection([medium("audio")], [*[token | NOWHERE for token in patches("audio", 1, 1, 40)], text("A")])


@pytest.fixture(scope="module")  # next to Playwright's loop, asyncio.run of other tests would fail
def browser() -> Iterator[Browser]:
    with network(changes=False), running_browser() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that may not write anything to the console."""
    yield from opened(browser)


def opened(browser: Browser, **looks: Any) -> Iterator[Page]:
    page = browser.new_page(**looks)
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page
    page.close()
    assert complaints == []


def ask(page: Page) -> None:
    expect(page.locator("#model")).to_have_text(MODEL)
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("#load")).to_be_visible()


def test_an_image_has_its_own_grid_over_the_whole_picture(page: Page) -> None:
    asked = serve(page, IMAGE)
    ask(page)
    assert [part["type"] for part in asked[0]["messages"][0]["content"]] == ["image_url", "text"]
    stage = page.locator("#stage-A")
    assert stage.locator("g[data-row]").evaluate_all(
        "all => all.map(g => g.dataset.row + g.dataset.column)"
    ) == [
        "00",
        "01",
        "02",
        "10",
        "11",
        "12",
    ]
    box, picture = stage.bounding_box(), stage.locator("img").bounding_box()
    assert box is not None and box == picture
    assert box["width"] / box["height"] == pytest.approx(3 / 2, rel=0.01)
    expect(stage.locator("img")).to_have_css("object-fit", "fill")
    stage.hover(position={"x": 2.5 * box["width"] / 3, "y": 1.5 * box["height"] / 2})
    # The picture's last token is the request's seventh: 3 * 6 in the first layer.
    expect(page.locator("#patch-A")).to_have_text(
        "Row 2, column 3: experts 18 (30%), 24 (20%), 30 (15%), 36 (10%), 42 (10%), 48 (5%), 54 (5%), 60 (5%)"
    )
    expect(page.locator("#run-A .summary")).to_have_text(
        "6 tokens, 8.00 experts each; 20 experts used in this layer."
    )
    expect(page.locator("#colours")).to_be_hidden()  # Nothing here is a tail token.
    expect(page.locator("#policy")).to_have_text("native: softmax, renormalised, 8 of 128 experts")


def test_a_video_is_frames_by_number(page: Page) -> None:
    asked = serve(page, VIDEO)
    expect(page.locator("#model")).to_have_text(MODEL)
    page.locator("#file").set_input_files({"name": "cat.mp4", "mimeType": "video/mp4", "buffer": b"frames"})
    ask(page)
    assert asked[0]["messages"][0]["content"][0] == {
        "type": "video_url",
        "video_url": {"url": "data:video/mp4;base64,ZnJhbWVz"},
    }
    expect(page.locator("figcaption")).to_have_text(
        ["Frame 1", "Frame 2"] + [re.compile("all 48 layers")] * 4
    )
    expect(page.locator(".frames img")).to_have_count(0)
    page.locator("#stage-A-2").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#patch-A")).to_contain_text("Frame 2, row 1, column 2: experts 15 (30%)")
    expect(page.locator(".cursor[visibility=visible]")).to_have_count(1)
    expect(page.locator(".tokens .media")).to_have_text(["video2 tokens", "video2 tokens"])


def test_tokens_that_use_no_expert(page: Page) -> None:
    """The picture's first token, and the first word."""
    layers = [
        layer | {name: [[], [], *layer[name][2:]] for name in ("experts", "weights")}
        for layer in IMAGE["layers"]
    ]
    serve(page, IMAGE | {"layers": layers})
    ask(page)
    expect(page.locator("#run-A .summary")).to_have_text(
        "6 tokens, 6.67 experts each; 19 experts used in this layer, none by 1 token."
    )
    first = page.locator("#stage-A g[data-row='0'][data-column='0']")
    expect(first.locator("rect")).to_have_class("dim")
    expect(page.locator("#stage-A rect.dim")).to_have_count(1)
    page.locator("#stage-A").focus()
    page.keyboard.press("ArrowDown")
    expect(page.locator("#patch-A")).to_have_text("Row 1, column 1: no expert")
    expect(page.locator(".tokens li").first).to_have_attribute("title", "“See”: no expert")
    page.locator("#expert-18").click()
    expect(page.locator("#stage-A rect.dim")).to_have_count(3)


def test_tokens_without_places_are_in_a_row(page: Page) -> None:
    serve(page, SOUND)
    ask(page)
    expect(page.locator(".seen .note")).to_contain_text("The places of these audio tokens are unknown")
    expect(page.locator("#stage-A g[data-row]")).to_have_count(40)
    expect(page.locator("#stage-A img")).to_have_count(0)
    page.locator("#stage-A").focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
    expect(page.locator("#patch-A")).to_contain_text("Token 34: experts 99 (30%)")


def test_a_text_model_is_asked_without_a_picture(page: Page) -> None:
    asked = serve(page, inspection([], [text("Hi"), text("A")]), ROUTING | {"modalities": ["text"]})
    ask(page)
    expect(page.locator("#drop")).to_be_hidden()
    assert [part["type"] for part in asked[0]["messages"][0]["content"]] == ["text"]
    expect(page.locator(".seen")).to_have_count(0)
    expect(page.get_by_role("list", name="Tokens of the prompt")).to_contain_text("Hi")


def test_missing_weights_are_not_shown(page: Page) -> None:
    layers = [layer | {"weights": None} for layer in IMAGE["layers"]]
    serve(page, IMAGE | {"layers": layers})
    ask(page)
    page.locator("#stage-A").focus()
    page.keyboard.press("ArrowDown")
    expect(page.locator("#patch-A")).to_have_text("Row 1, column 1: experts 3, 9, 15, 21, 27, 33, 39, 45")
    shares = page.locator("#patch-A .bar i").evaluate_all("parts => parts.map(part => part.style.flexGrow)")
    assert shares == ["0.125"] * len(WEIGHTS)


def test_the_most_loaded_of_many_experts_by_modality(page: Page) -> None:
    serve(page, IMAGE)
    ask(page)
    tables = page.locator("#load-tables table")
    expect(tables.locator("caption")).to_have_text(
        ["Text tokens: the 16 most loaded of 128 experts", "Image tokens: the 16 most loaded of 128 experts"]
    )
    # The patches have experts 3, 6, ... 18 and those 6, 12, ... above: 15 is the first with three patches.
    rows = tables.nth(1).locator("tbody tr")
    expect(rows).to_have_count(16)
    most, shares = rows.first.locator("th"), rows.first.locator("td")
    expect(most).to_have_text("15")
    expect(shares).to_have_text(["6.3%", "6.3%"])
    expect(page.locator("#load-note")).to_contain_text("3 text, 6 image tokens.")
    expect(page.locator("#legend button")).to_have_count(128)


def test_a_map_of_all_layers_selects_one(page: Page) -> None:
    serve(page, IMAGE)
    ask(page)
    maps = page.get_by_role("img", name="the load of each expert")
    expect(maps).to_have_count(4)
    size = maps.first.evaluate("canvas => [canvas.width, canvas.height]")
    assert size == [128, LAYERS]
    pixels = maps.first.evaluate("canvas => [...canvas.getContext('2d').getImageData(0, 0, 128, 2).data]")
    first, second = (
        [tuple(pixels[at : at + 3]) for at in range(start, start + 4 * 128, 4)] for start in (0, 4 * 128)
    )
    # In the first layer two of the three text tokens use expert 24, one uses 0, and none 1.
    few, some, many = (18, 53, 112), (138, 135, 121), (254, 232, 56)
    assert (first[1], first[0], first[24]) == (few, some, many)
    assert (second[6], second[5], second[29]) == (few, some, many)
    box = maps.first.bounding_box()
    assert box is not None
    maps.first.click(position={"x": 3, "y": 40.5 * box["height"] / LAYERS})
    expect(page.locator("#layer-name")).to_have_text("40")
    expect(page.get_by_role("slider", name="Layer")).to_have_value("40")


def test_one_of_many_experts_alone(page: Page) -> None:
    serve(page, IMAGE)
    ask(page)
    page.get_by_role("button", name="Expert 18", exact=True).click()
    expect(page.locator("#stage-A .dim")).to_have_count(3)  # The second, fourth and sixth patch use it.
    page.get_by_role("button", name="Expert 18", exact=True).click()
    expect(page.locator("#stage-A .dim")).to_have_count(0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("reported", [IMAGE, VIDEO, SOUND], ids=["image", "video", "sound"])
def test_on_a_desktop_and_on_a_phone(
    browser: Browser, reported: dict[str, Any], width: int, scheme: str
) -> None:
    looks = {"viewport": {"width": width, "height": WIDTHS[width]}, "color_scheme": scheme}
    for page in opened(browser, **looks):
        serve(page, reported)
        ask(page)
        assert page.locator("html").evaluate("html => html.scrollWidth") == width
        parts = page.locator(".load-part").evaluate_all("parts => parts.map(part => part.offsetTop)")
        assert (parts[0] == parts[1]) == (width == 1280)
