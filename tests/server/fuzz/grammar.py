"""Hypothesis strategies for requests: valid bodies with up to three faults, as JSON text.

Strings can be lures: addresses and files that no server may access.
"""

import base64
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import strategies as st

from tests.server.fuzz.images import mutated_image, seed_images

MODEL = "prismoji"


def data_url(image: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"


DATA_URL = data_url(seed_images()[0])
PICTURE = DATA_URL.partition(",")[2]

VOCABULARY = json.loads((Path(__file__).parent / "vocabulary.json").read_text())
MEDIA: list[str] = VOCABULARY["media"]
PARTS: list[str] = MEDIA + VOCABULARY["others"]
"""Types of parts, blocks and items: those of every route, and others that vLLM's parsers know."""
KEYS: list[str] = PARTS + VOCABULARY["keys"]

Options = dict[str, list[Any]]
COMPLETIONS: Options = VOCABULARY["completions"]
CHAT: Options = COMPLETIONS | VOCABULARY["chat"]
"""A route's options, each with some values. Some belong to other routes."""

NUMBERS = (0, -1, 1, 7, 2**31, 2**63, -(2**63), 10**400, 0.5, -1.5, 1e308, 5e-324, float("nan"), float("inf"))
TEXTS = (
    *("", " ", "Hi", "0", "1", "null", "\0", "x" * 3000, "<image>", "<|endoftext|>", "<image><image>"),
    *("\ufdd0", "\ud83d", "日本", "{{ 7 * 7 }}", "%s%n", DATA_URL, PICTURE),
)
LISTS: tuple[Any, ...] = ([], [[]], [{}], [None], [""], ["a"] * 50, [[[[[1]]]]], [1, "a", None])
OBJECTS: tuple[Any, ...] = ({}, {"": ""}, {"type": "text"}, {"type": "image_url"}, {"a": {"b": {"c": []}}})
ODD: tuple[Any, ...] = (None, True, False, *NUMBERS, *TEXTS, *LISTS, *OBJECTS)


class Pairs(list[tuple[str, Any]]):
    """A JSON object that can have a key twice."""


class Request(NamedTuple):
    path: str
    body: bytes


def requests(lures: Sequence[str]) -> list[st.SearchStrategy[Request]]:
    """Requests to each route that has a body."""
    lure = st.sampled_from(lures)
    broken = st.integers(0, 9999).map(lambda number: data_url(mutated_image(number)))
    url = st.one_of(st.just(DATA_URL), broken, lure)
    words = st.one_of(
        st.sampled_from(("Hi", "What is this?")), st.sampled_from(TEXTS), lure, st.text(max_size=9)
    )
    any_part = _part(PARTS, st.one_of(url, words))
    chat = _conversation(st.one_of(_text("text", words), _picture(url), any_part), words, lure)
    blocks = st.one_of(_text("text", words), _source(url), _tool_block(words), any_part)
    anthropic = _conversation(blocks, words, lure)
    inputs = _conversation(st.one_of(_text("input_text", words), _input_image(url), any_part), words, lure)
    items = st.lists(st.one_of(any_part, _call(words)), max_size=2)
    ids = st.lists(st.sampled_from((0, 1, 5, 6, 300, -1, 10**6, 2**63)), max_size=4)
    prompt = st.one_of(words, ids, st.lists(words, max_size=3), st.lists(ids, max_size=2))
    batch = st.lists(chat, min_size=1, max_size=2)
    bodies = {
        "/v1/chat/completions": _body(CHAT, messages=chat, max_tokens=FEW),
        "/v1/chat/completions/batch": _body(CHAT, messages=batch, max_tokens=FEW),
        "/v1/completions": _body(COMPLETIONS, prompt=prompt, max_tokens=FEW),
        "/v1/messages": _body(VOCABULARY["anthropic"], messages=anthropic, max_tokens=FEW),
        "/v1/messages/count_tokens": _body(VOCABULARY["anthropic"], messages=anthropic),
        "/v1/responses": _body(
            VOCABULARY["responses"], input=st.one_of(words, inputs, items), max_output_tokens=FEW
        ),
        "/tokenize": st.one_of(_body(VOCABULARY["tokenize"], prompt=words), _body(CHAT, messages=chat)),
        "/detokenize": _body({}, tokens=ids),
        "/v1/routing/inspect": _body(CHAT, messages=chat, max_tokens=FEW),
    }
    odd = st.one_of(st.sampled_from(ODD), lure, any_part)
    return [st.builds(Request, st.just(path), _broken(body, odd)) for path, body in bodies.items()]


FEW = st.sampled_from((1, 2, 4))


def _text(kind: str, words: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    return words.map(lambda text: {"type": kind, "text": text})


def _picture(url: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    return url.map(lambda where: {"type": "image_url", "image_url": {"url": where, "detail": "low"}})


def _input_image(url: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    return url.map(lambda where: {"type": "input_image", "image_url": where, "detail": "auto"})


def _source(url: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    """A source of Anthropic's image."""
    inline = {"type": "base64", "media_type": "image/png", "data": PICTURE}
    sources = st.one_of(st.just(inline), url.map(lambda where: {"type": "url", "url": where}))
    return sources.map(lambda source: {"type": "image", "source": source})


def _tool_block(words: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    return st.one_of(
        words.map(lambda text: {"type": "tool_use", "id": "t1", "name": text, "input": {"a": text}}),
        words.map(lambda text: {"type": "tool_result", "tool_use_id": "t1", "content": text}),
        words.map(
            lambda text: {
                "type": "tool_result",
                "tool_use_id": text,
                "content": [{"type": "text", "text": text}],
            }
        ),
    )


def _call(words: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    """A tool's call, or its result, as an item of /v1/responses."""
    return st.one_of(
        words.map(lambda text: {"type": "function_call", "call_id": "c", "name": "f", "arguments": text}),
        words.map(lambda text: {"type": "function_call_output", "call_id": "c", "output": text}),
    )


@st.composite
def _part(draw: st.DrawFn, kinds: Sequence[str], names: st.SearchStrategy[str]) -> Any:
    """A part of one of these kinds, in all shapes of parts, with or without its type."""
    kind, name = draw(st.sampled_from(kinds)), draw(names)
    shapes: tuple[Any, ...] = (
        *(name, {"url": name}, name, {"url": name}, {"data": name, "format": "wav"}, [name], None),
        *({"type": "url", "url": name}, {"type": "base64", "media_type": name, "data": name}),
        {"file_data": name, "filename": name, "file_url": name},
    )
    key = draw(st.sampled_from((kind, kind, kind, "source", "data", "content")))
    part = {"type": kind, key: draw(st.sampled_from(shapes))}
    if draw(st.integers(0, 3)) == 1:
        del part["type"]
    if draw(st.integers(0, 3)) == 1:
        part[draw(st.sampled_from(("uuid", "detail", "name", "text", "cache_control")))] = name
    return part


@st.composite
def _conversation(
    draw: st.DrawFn,
    parts: st.SearchStrategy[Any],
    words: st.SearchStrategy[str],
    lure: st.SearchStrategy[str],
) -> Any:
    """One to three messages, the last a user's; or one lure in a part of some kind of media.

    Text is before or after that part, because vLLM parses parts one by one, and not always to the end.
    """
    if draw(st.integers(0, 3)) == 1:
        baited, text = draw(_part(MEDIA, lure)), {"type": "text", "text": "What is this?"}
        content = draw(st.sampled_from(([baited, text], [text, baited], [baited])))
        return [{"role": "user", "content": content}]
    content = st.one_of(words, st.lists(parts, min_size=1, max_size=3))
    messages = list[Any]()
    for _ in range(draw(st.integers(0, 2))):
        if draw(st.integers(0, 3)) == 1:
            messages.append(draw(st.sampled_from(VOCABULARY["messages"])))
            continue
        messages.append({"role": draw(st.sampled_from(VOCABULARY["roles"])), "content": draw(content)})
        if draw(st.integers(0, 3)) == 1:
            call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": draw(words)}}
            messages[-1]["tool_calls"] = [call]
    last = {"role": "user", "content": draw(content)}
    return [*messages, last] if draw(st.integers(0, 7)) != 1 else messages


@st.composite
def _body(draw: st.DrawFn, /, options: Options, **required: st.SearchStrategy[Any]) -> Any:
    body = {"model": MODEL} | {name: draw(values) for name, values in required.items()}
    chosen = draw(st.lists(st.sampled_from(sorted(options)), max_size=3, unique=True)) if options else ()
    return body | {name: draw(st.sampled_from(options[name])) for name in chosen}


@st.composite
def _broken(draw: st.DrawFn, bodies: st.SearchStrategy[Any], odd: st.SearchStrategy[Any]) -> bytes:
    """A body with up to three faults in its structure. One in thirty also has one in its text."""
    body = _with_pairs(draw(bodies))
    for _ in range(draw(st.sampled_from((0, 0, 0, 1, 1, 2, 3)))):
        places = list(_places(body))
        if places:
            holder, index = draw(st.sampled_from(places))
            _break(draw, holder, index, odd)
    text = _json(body).encode(errors="surrogatepass")
    if draw(st.integers(0, 29)) == 17:  # Hypothesis prefers the ends of a range.
        text = draw(st.sampled_from(TEXT_FAULTS))(text)
    return text


def _half(text: bytes) -> bytes:
    return text[: len(text) // 2]


TEXT_FAULTS: tuple[Callable[[bytes], bytes], ...] = (
    _half,
    lambda text: text.decode(errors="replace").encode("utf-16"),
    lambda text: b"\xef\xbb\xbf" + text,
    lambda text: text.replace(b"i", b"\xed\xa0\xbd", 1),
    lambda text: text + b"{}",
    lambda text: b"[" * 2000 + text + b"]" * 2000,
    lambda text: b"[" + text + b"]",
    lambda text: b"",
)


def _with_pairs(value: Any) -> Any:
    if isinstance(value, dict):
        return Pairs((key, _with_pairs(each)) for key, each in value.items())
    return [_with_pairs(each) for each in value] if isinstance(value, list) else value


def _places(value: Any) -> Iterator[tuple[Any, int]]:
    """Every object or list in a body, with the keys or indexes of its members."""
    if not isinstance(value, list):
        return
    for index, each in enumerate(value):
        yield value, index
        yield from _places(each[1] if isinstance(value, Pairs) else each)


def _break(draw: st.DrawFn, holder: Any, index: int, odd: st.SearchStrategy[Any]) -> None:
    """Put one fault at a place."""
    is_object = isinstance(holder, Pairs)
    key, value = holder[index] if is_object else (None, holder[index])

    def member(name: str | None, what: Any) -> Any:
        return (name, what) if is_object else what

    match draw(st.sampled_from(("odd", "odd", "gone", "list", "nested", "twice", "new", "renamed"))):
        case "odd":
            holder[index] = member(key, _with_pairs(draw(odd)))
        case "gone":
            del holder[index]
        case "list":
            holder[index] = member(key, [value] * draw(st.sampled_from((1, 2, 9))))
        case "nested":
            holder[index] = member(key, Pairs([(draw(st.sampled_from(KEYS)), value)]))
        case "twice":
            holder.insert(index + draw(st.integers(0, 1)), member(key, _with_pairs(draw(odd))))
        case "new":
            holder.insert(index, member(draw(st.sampled_from(KEYS)), _with_pairs(draw(odd))))
        case "renamed":
            holder[index] = member(draw(st.sampled_from(KEYS)), value)


def _json(value: Any) -> str:
    if isinstance(value, Pairs):
        return "{" + ", ".join(f"{json.dumps(key)}: {_json(each)}" for key, each in value) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_json, value)) + "]"
    return json.dumps(value)
