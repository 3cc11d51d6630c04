"""The forms of base64 that clients send are accepted, others are refused, and limits are in bytes."""

import base64
import time
import tracemalloc
from collections.abc import Callable
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prismoe.server.media.data_url import read_data_url
from prismoe.server.media.refusal import MediaRefused

MIB = 2**20
DATA = bytes(range(256)) + b"\xff\xef\xbe" * 40 + b"?"
"""It needs padding, and the letters in which the alphabets differ."""


def read(text: str, header: str = "data:image/png;base64,", max_bytes: int = MIB) -> bytes:
    return read_data_url(header + text, max_bytes)


def refusal(url: str, max_bytes: int = MIB) -> str:
    with pytest.raises(MediaRefused) as refused:
        read_data_url(url, max_bytes)
    return str(refused.value)


def lines(text: str, end: str, width: int = 76) -> str:
    return end.join(text[at : at + width] for at in range(0, len(text), width))


FORMS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "line breaks": lambda text: lines(text, "\n"),
    "Windows line breaks": lambda text: lines(text, "\r\n", 64),
    "trailing newline": lambda text: text + "\n",
    "leading space": lambda text: " " + text,
    "tabs and spaces": lambda text: "\t" + lines(text, " \t ", 5) + "  ",
    "no padding": lambda text: text.rstrip("="),
    "no padding, trailing newline": lambda text: text.rstrip("=") + "\r\n",
    "URL-safe": lambda text: text.replace("+", "-").replace("/", "_"),
    "URL-safe, no padding": lambda text: text.replace("+", "-").replace("/", "_").rstrip("="),
    "percent-encoded": lambda text: quote(text, safe=""),
    "percent-encoded in lower case": lambda text: (
        text.replace("+", "%2b").replace("/", "%2f").replace("=", "%3d")
    ),
    "percent-encoded line breaks": lambda text: quote(lines(text, "\r\n"), safe="+/="),
    "percent-encoded letters": lambda text: "".join(f"%{ord(letter):02X}" for letter in text),
    "all at once": lambda text: " " + quote(lines(text.replace("+", "-").rstrip("="), "\n\t")) + "%20\n",
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_the_forms_of_base64(form: Callable[[str], str]) -> None:
    for data in (DATA, DATA[:-1], DATA[:-2], b"x"):
        assert read(form(base64.b64encode(data).decode())) == data


@pytest.mark.parametrize(
    "header",
    [
        "data:image/png;base64,",
        "data:;base64,",
        "data:image/png;charset=utf-8;base64,",
        "data:image/png;base64;charset=utf-8,",
        "data:image/png; base64,",
        "data:image/png;base64 ,",
        "DATA:IMAGE/PNG;BASE64,",
        "data:image/svg+xml;name=a%20b.png;Base64,",
    ],
)
def test_the_forms_of_the_header(header: str) -> None:
    assert read(base64.b64encode(DATA).decode(), header) == DATA


@pytest.mark.parametrize(
    "text",
    [
        "!!!!",
        "AAAAA",  # six bits are not a byte
        "AAAA=AAA",
        "AAAA.AAAA",
        "AAAA,AAAA",
        "AA%zzAA",
        "AA%2",
        "%FF%FE%FD%FC",
        "AAAA#fragment",
        "ÄÖÜ=",
        "AAAA\u00a0AAAA",
        "AAAA\u2028",
        "AAAA\0",
        "data:image/png;base64,AAAA",
    ],
)
def test_what_is_not_base64(text: str) -> None:
    assert refusal(f"data:image/png;base64,{text}") == "the text of its data URL is not base64"


@pytest.mark.parametrize("text", ["", " ", "\r\n", "%0A", "==", "%3D%3D"])
def test_an_empty_url(text: str) -> None:
    assert refusal(f"data:image/png;base64,{text}") == "its data URL is empty"


@pytest.mark.parametrize(
    "header", ["data:", "data:image/png", "data:image/png,", "data:base64,", "data:xbase64,"]
)
def test_what_is_no_base64_url(header: str) -> None:
    assert refusal(header + "AAAA") == "its data URL must have the form data:TYPE;base64,TEXT"


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
@pytest.mark.parametrize("most", [1000, 1001, 1002])
def test_the_limit_is_in_bytes(form: Callable[[str], str], most: int) -> None:
    def text(count: int) -> str:
        return form(base64.b64encode(b"\xff" * count).decode())

    assert read(text(most), max_bytes=most) == b"\xff" * most
    for count in (most + 1, most + 2, most + 3, 2 * most, 100 * most):
        assert refusal("data:image/png;base64," + text(count), most) == f"it has more than {most:,} bytes"


@pytest.mark.parametrize("text", ["A" * 32 * MIB, "A\n" * 16 * MIB, "%41A" * 8 * MIB])
def test_a_url_that_is_too_large_needs_no_memory(text: str) -> None:
    url = "data:image/png;base64," + text
    tracemalloc.start()
    try:
        assert refusal(url, MIB) == "it has more than 1,048,576 bytes"
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < len(url) + MIB  # the partition of the URL


@pytest.mark.parametrize("text", ["%41" * 10 * MIB, "%0A" * 10 * MIB, "%" * 30 * MIB, " " * 30 * MIB])
def test_escapes_are_read_quickly(text: str) -> None:
    start = time.monotonic()
    refusal("data:image/png;base64," + text, 5 * MIB)
    assert time.monotonic() - start < 4


@given(st.binary(min_size=1, max_size=200), st.data())
def test_any_mixture_of_forms(data: bytes, draw: st.DataObject) -> None:
    text = base64.b64encode(data).decode()
    if draw.draw(st.booleans()):
        text = text.rstrip("=")
    pieces = []
    for letter in text:
        letter = draw.draw(st.sampled_from([letter, letter, {"+": "-", "/": "_"}.get(letter, letter)]))
        pieces.append(
            draw.draw(st.sampled_from([letter, letter, f"%{ord(letter):02X}", f"%{ord(letter):02x}"]))
        )
        pieces.append(draw.draw(st.sampled_from(["", "", "", "\n", "%0a", " ", "%20", "\t"])))
    assert read("".join(pieces)) == data
