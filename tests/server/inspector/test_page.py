"""The inspector's page in a real browser, on a real server."""

import re
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

from prismoe.benchmarks.monitoring.browser import running_browser
from prismoe.model_plugins.files.bundled import bundled_checkpoint
from tests.kernels.reference import probabilities
from tests.kernels.reference import tail as reference_tail
from tests.network import network
from tests.server.conftest import image_part, user
from tests.server.running import Server

QUESTION = "What is this?"
PATCHES, LAYERS = 64, (0, 2)
WIDTHS = {1280: 900, 390: 844}
Patch = tuple[int, int]

expect.set_options(timeout=30_000)  # milliseconds, for a busy machine


@pytest.fixture(scope="module")  # next to Playwright's loop, asyncio.run of other tests would fail
def browser(server: Server) -> Iterator[Browser]:
    with network(changes=False), running_browser() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    """The page after it opened.

    It has to load everything from the server, and may not write to the console.
    """
    yield from opened(browser, server)


def opened(browser: Browser, server: Server, **looks: Any) -> Iterator[Page]:
    page = browser.new_page(**looks)
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda sent: complaints.extend({sent.url} if not is_own(sent.url, server) else ()))
    page.goto(f"{server.url}/inspector")
    expect(page.locator("#model")).to_have_text("prismoji")
    yield page
    page.close()
    assert complaints == []


def is_own(url: str, server: Server) -> bool:
    return url.startswith((server.url, "data:", "blob:"))


def ask(page: Page) -> None:
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("article[aria-busy=true]")).to_have_count(0)
    expect(page.locator("#load")).to_be_visible()


def patches(page: Page, kind: str, run: str = "A") -> set[Patch]:
    """Row and column of the overlay's patches: all ("g g"), tail or head."""
    cells = page.locator(f"#stage-{run} {kind}").evaluate_all(
        "cells => cells.map(cell => [Number(cell.dataset.row), Number(cell.dataset.column)])"
    )
    return {(row, column) for row, column in cells}


def recomputed_tail(http: httpx.Client, picture: bytes, question: str = QUESTION) -> list[set[Patch]]:
    """The tail patches of each MoE layer, from the routers' logits by a plain float64 computation."""
    body = {
        "model": "prismoji",
        "messages": user(image_part(picture), question),
        "max_tokens": 1,
        "router_logits": True,
    }
    routing = http.post("/v1/routing/inspect", json=body).raise_for_status().json()["routing"]
    tokens = routing["tokens"]
    segments = [-1 if token["segment"] is None else token["segment"] for token in tokens]
    return [
        {
            (token["row"], token["column"])
            for token, tail in zip(
                tokens, reference_tail(probabilities(np.array(layer["router_logits"])), segments), strict=True
            )
            if tail
        }
        for layer in routing["layers"]
    ]


def test_a_question_about_a_picture_gives_an_answer_and_tail_tokens(page: Page, http: httpx.Client) -> None:
    page.get_by_role("radio", name="airplane").check(force=True)
    ask(page)
    picture = (bundled_checkpoint() / "pictures" / "airplane.png").read_bytes()
    body = {"model": "prismoji", "messages": user(image_part(picture), QUESTION), "temperature": 0}
    answer = http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
    expect(page.locator("#answer-A")).to_have_text(answer.strip())

    expected = recomputed_tail(http, picture)
    assert expected[0] != expected[1]
    slider = page.get_by_role("slider", name="Layer")
    for index, layer in enumerate(LAYERS):
        slider.fill(str(index))
        expect(page.locator("#layer-name")).to_have_text(str(layer))
        assert patches(page, "g.tail") == expected[index]
        assert len(patches(page, "g[data-row]")) == PATCHES
        expect(page.locator("#run-A .summary")).to_contain_text(
            f"{len(expected[index])} of 64 patches are tail"
        )


def test_the_users_own_picture_and_question(page: Page, http: httpx.Client, picture: bytes) -> None:
    page.locator("#file").set_input_files({"name": "ball.png", "mimeType": "image/png", "buffer": picture})
    expect(page.get_by_role("radio", name="ball.png")).to_be_checked()
    question = "Which category does it belong to?"
    page.get_by_label("Question").fill(question)
    ask(page)
    assert patches(page, "g.tail") == recomputed_tail(http, picture, question)[0]
    expect(page.get_by_role("list", name="Tokens of the prompt")).to_contain_text("category")

    page.locator("#file").set_input_files({"name": "notes.txt", "mimeType": "text/plain", "buffer": b"Hi"})
    expect(page.get_by_role("alert")).to_have_text("notes.txt is not a picture: choose a picture.")


def test_a_dropped_picture(page: Page, other_picture: bytes, http: httpx.Client) -> None:
    dropped = page.evaluate_handle(
        """bytes => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], "stairs.png", { type: "image/png" }));
            return data;
        }""",
        list(other_picture),
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": dropped})
    expect(page.get_by_role("radio", name="stairs.png")).to_be_checked()
    ask(page)
    assert patches(page, "g.tail") == recomputed_tail(http, other_picture)[0]


def test_everything_works_by_keyboard(page: Page) -> None:
    page.get_by_label("Question").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#load")).to_be_visible()
    page.get_by_role("slider", name="Layer").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#layer-name")).to_have_text("2")
    expect(page.get_by_role("slider", name="Layer")).to_be_focused()

    page.locator("#stage-A").focus()
    detail = page.locator("#patch-A")
    for key, place in (
        ("ArrowDown", "Row 1, column 1"),
        ("ArrowRight", "Row 1, column 2"),
        ("ArrowUp", "Row 1, column 2"),
        ("ArrowDown", "Row 2, column 2"),
    ):
        page.keyboard.press(key)
        expect(detail).to_contain_text(f"{place}: ")
    expect(detail).to_contain_text(re.compile(r"tail token, experts \d \(\d+%\), \d"))
    page.keyboard.press("Escape")
    expect(detail).to_have_text("Point at a patch to see its experts.")

    page.get_by_role("button", name="Expert 2").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Expert 2")).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_role("button", name="Expert 2")).to_be_focused()
    expect(page.get_by_role("radio", name="Expert", exact=True)).to_be_checked()
    without = page.locator("#stage-A .dim").count()
    assert 0 < without < PATCHES
    page.keyboard.press("Enter")
    expect(page.locator("#stage-A .dim")).to_have_count(0)


def test_the_pointer_shows_a_patch(page: Page) -> None:
    ask(page)
    box = page.locator("#stage-A").bounding_box()
    assert box is not None
    side = box["width"] / 8
    page.locator("#stage-A").hover(position={"x": 2.5 * side, "y": 6.5 * side})
    expect(page.locator("#patch-A")).to_contain_text("Row 7, column 3: ")


def test_two_routings_side_by_side(page: Page) -> None:
    page.get_by_label("Compare with another routing").check()
    page.locator("#tail-B").fill("3")
    page.locator("#head-B").fill("1")
    ask(page)
    page.get_by_role("radio", name="Number of experts").check(force=True)
    used = {
        run: set(
            page.locator(f"#stage-{run} g[data-row]").evaluate_all("all => all.map(g => g.dataset.label)")
        )
        for run in "AB"
    }
    assert used == {"A": {"tail 4 experts", "2 experts"}, "B": {"tail 3 experts", "1 expert"}}
    # The first layer's gate sees the same picture, and the number of experts does not change its tail tokens.
    assert patches(page, "g.tail", "A") == patches(page, "g.tail", "B")
    expect(page.locator("#difference")).to_have_text(
        "From A to B, 64 of 64 patches use other experts in this layer; 0 are tail tokens in only one."
    )
    columns = page.get_by_role("table", name="Image tokens").get_by_role("columnheader")
    expect(columns).to_have_text(["Expert", "Request A", "Request B", "Server"])
    page.locator("#stage-B").hover(position={"x": 2, "y": 2})
    for run in "AB":
        expect(page.locator(f"#patch-{run}")).to_contain_text("Row 1, column 1: ")


def test_load_of_the_request_and_of_the_server(page: Page) -> None:
    with page.expect_response("**/v1/routing/load") as answered:
        ask(page)
    load = answered.value.json()
    for row, name in enumerate(("Text tokens", "Image tokens")):
        cells = page.get_by_role("table", name=name).locator("tbody td:last-child").all_inner_texts()
        counts = np.array(load["expert_tokens"][0][row])
        expected = 100 * counts / counts.sum()
        assert np.abs([float(cell.strip().removesuffix("%")) for cell in cells] - expected).max() <= 0.51


def test_a_refusal_is_shown_and_the_next_question_is_answered(browser: Browser, server: Server) -> None:
    page = browser.new_page()  # The browser writes refusals to the console.
    page.goto(f"{server.url}/inspector")
    page.locator("#tail-A").evaluate("field => { field.removeAttribute('max'); field.value = 9; }")
    page.get_by_role("button", name="Ask").click()
    expect(page.get_by_role("alert")).to_contain_text("this server allows up to 4")
    expect(page.locator("article")).to_have_count(0)
    page.locator("#tail-A").fill("4")
    ask(page)
    expect(page.locator("#error")).to_be_hidden()
    page.close()


def test_a_server_without_inspections_says_so(page: Page, http: httpx.Client) -> None:
    facts = http.get("/v1/routing/inspect").json() | {"refusal": "Start it with --enforce-eager."}
    page.route("**/v1/routing/inspect", lambda route: route.fulfill(json=facts))
    page.reload()
    expect(page.get_by_role("alert")).to_have_text("Start it with --enforce-eager.")
    expect(page.get_by_role("button", name="Ask")).to_be_disabled()


def test_a_policy_without_numbers_of_experts(page: Page, http: httpx.Client) -> None:
    facts = http.get("/v1/routing/inspect").json() | {"request_experts": 0}
    page.route("**/v1/routing/inspect", lambda route: route.fulfill(json=facts))
    page.reload()
    expect(page.get_by_label("Compare with another routing")).to_be_disabled()
    expect(page.locator("#routing-note")).to_contain_text("does not let requests choose")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_on_a_desktop_and_a_phone_in_light_and_dark(
    browser: Browser, server: Server, width: int, scheme: str
) -> None:
    looks = {"viewport": {"width": width, "height": WIDTHS[width]}, "color_scheme": scheme}
    for page in opened(browser, server, **looks):
        page.get_by_label("Compare with another routing").check()
        ask(page)
        for colour in ("Expert", "Number of experts", "Tail tokens"):
            page.get_by_role("radio", name=colour, exact=True).check(force=True)
            assert page.locator("html").evaluate("html => html.scrollWidth") == width
        first, second = (page.locator(f"#stage-{run}").bounding_box() for run in "AB")
        assert first is not None and second is not None
        assert (first["y"] == second["y"]) == (width == 1280)
        ground = page.locator("body").evaluate("body => getComputedStyle(body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", ground))) > 384) == (scheme == "light")


GUARD = """
const ask = window.fetch;
window.fetch = (path, options = {}) =>
  path.startsWith("v1/") && options.headers?.Authorization !== "Bearer open sesame"
    ? Promise.resolve(Response.json({ error: "Unauthorized" }, { status: 401 }))
    : ask(path, options);
"""
"""The answers of a server with a key, from a proxy in front of one without."""


def test_a_server_with_a_key_asks_for_it(browser: Browser, server: Server) -> None:
    page = browser.new_page()
    page.add_init_script(GUARD)
    page.goto(f"{server.url}/inspector")
    expect(page.get_by_role("alert")).to_have_text("This server requires an API key: enter a valid one.")
    page.get_by_label("API key").fill("open sesame")
    page.get_by_label("API key").press("Tab")
    expect(page.locator("#model")).to_have_text("prismoji")
    ask(page)
    page.close()


def test_the_page_runs_only_the_servers_own_scripts(http: httpx.Client) -> None:
    for path in ("/inspector", "/inspector/main.js", "/inspector/pictures/pictures.json"):
        policy = http.get(path).raise_for_status().headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src 'self';" in policy and "unsafe" not in policy
    text = http.get("/inspector").text
    assert re.findall(r"<script[^>]*>(.*?)</script>", text) == [""]
    assert "style=" not in text and "onclick" not in text
    assert http.get("/inspector/").headers["location"] == "../inspector"
    assert http.get("/inspector/../launch.py").status_code == 404
