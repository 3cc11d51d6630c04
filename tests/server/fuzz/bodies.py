"""Mutated requests: the same path and body for the same number, on any machine."""

import base64
import json
import random
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

from tests.server.fuzz.images import mutated_image, seed_images

SEEDS = Path(__file__).parent / "bodies.json"
ODD_NUMBERS = (
    0,
    -1,
    1,
    2**31,
    2**63,
    -(2**63),
    10**400,
    0.5,
    -1.5,
    1e308,
    5e-324,
    float("nan"),
    float("inf"),
)
ODD_TEXTS = ("", " ", "\0", "x" * 3000, "<image>", "<|endoftext|>", "\ufdd0", "\ud83d", "日本", "1")
ODD_LISTS = ([], [[]], [{}], [None], [""], ["a"] * 50, [[[[[1]]]]])
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, *ODD_NUMBERS, *ODD_TEXTS, *ODD_LISTS),
    *({}, {"": ""}, {"type": "text"}),
)
UNKNOWN = ("unknown", "media_io_kwargs", "uuid", "cache_salt", "lora_path", "__proto__", "")


@cache
def seed_bodies() -> str:
    return SEEDS.read_text()


def mutated_request(number: int) -> tuple[str, bytes]:
    """A path and a body with one to three faults; one in ten is broken JSON."""
    chance = random.Random(number)
    seed = chance.choice(json.loads(seed_bodies()))
    body = _with_image(seed["body"], mutated_image(number) if chance.random() < 0.5 else None)
    for _ in range(chance.randint(1, 3)):
        _break(body, chance)
    text = bytearray(json.dumps(body).encode())
    if chance.random() < 0.1:
        text[chance.randrange(len(text))] = chance.randrange(256)
        del text[chance.randrange(len(text)) :]
    return seed["path"], bytes(text)


def _with_image(value: Any, image: bytes | None) -> Any:
    """The body with `IMAGE` as a data URL: a broken image, or a good one."""
    if value == "IMAGE":
        return f"data:image/png;base64,{base64.b64encode(image or seed_images()[0]).decode()}"
    if isinstance(value, dict):
        return {key: _with_image(each, image) for key, each in value.items()}
    return [_with_image(each, image) for each in value] if isinstance(value, list) else value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every dict or list in a body, with each of its keys."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield value, key
        yield from _places(each)


def _break(body: Any, chance: random.Random) -> None:
    places = list(_places(body))
    if not places:
        return
    holder, key = chance.choice(places)
    match chance.randrange(6):
        case 0 | 1 | 2:
            holder[key] = deepcopy(chance.choice(ODD_VALUES))
        case 3:
            del holder[key]
        case 4:
            holder[key] = [holder[key]] * chance.choice((1, 2, 9))
        case 5 if isinstance(holder, dict):
            holder[chance.choice(UNKNOWN)] = deepcopy(chance.choice(ODD_VALUES))
