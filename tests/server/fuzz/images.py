"""Mutated images: the same bytes for the same number, on any machine."""

import random
import struct
import zlib
from functools import cache
from pathlib import Path

SEEDS = Path(__file__).parent / "seeds"
ODD_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
SIGNATURE = b"\x89PNG\r\n\x1a\n"


@cache
def seed_images() -> tuple[bytes, ...]:
    return tuple(path.read_bytes() for path in sorted(SEEDS.glob("*.bin")))


def mutated_image(number: int) -> bytes:
    """A seed image with one to four faults. Half of the PNGs get right checksums, so that they are parsed."""
    chance = random.Random(number)
    data = mutated(chance.choice(seed_images()), chance)
    return with_checksums(data) if chance.random() < 0.5 else data


def mutated(seed: bytes, chance: random.Random) -> bytes:
    """A file with one to four faults."""
    data = bytearray(seed)
    for _ in range(chance.randint(1, 4)):
        chance.choice((_flip, _number, _delete, _repeat, _insert, _cut, _splice))(data, chance)
    return bytes(data)


def _place(data: bytearray, chance: random.Random) -> int:
    """A place in the data, most often after the signature and in the headers."""
    first = 12 if chance.random() < 0.95 else 0
    last = 80 if chance.random() < 0.5 else len(data)
    return min(chance.randint(first, max(first, last)), max(len(data) - 1, 0))


def _flip(data: bytearray, chance: random.Random) -> None:
    if data:
        data[_place(data, chance)] ^= 1 << chance.randrange(8)


def _number(data: bytearray, chance: random.Random) -> None:
    size, order = chance.choice((1, 2, 4)), chance.choice(("big", "little"))
    number = chance.choice(ODD_NUMBERS) % 256**size
    at = _place(data, chance)
    data[at : at + size] = number.to_bytes(size, order)


def _delete(data: bytearray, chance: random.Random) -> None:
    at = _place(data, chance)
    del data[at : at + chance.randint(1, 16)]


def _repeat(data: bytearray, chance: random.Random) -> None:
    at = _place(data, chance)
    data[at:at] = data[at : at + chance.randint(1, 64)] * chance.randint(1, 50)


def _insert(data: bytearray, chance: random.Random) -> None:
    at = _place(data, chance)
    data[at:at] = chance.randbytes(chance.randint(1, 32))


def _cut(data: bytearray, chance: random.Random) -> None:
    del data[_place(data, chance) + chance.randint(0, 400) :]


def _splice(data: bytearray, chance: random.Random) -> None:
    other = chance.choice(seed_images())
    at, start = _place(data, chance), chance.randrange(len(other))
    data[at : at + chance.randint(0, 200)] = other[start : start + chance.randint(1, 200)]


def with_checksums(data: bytes) -> bytes:
    """A PNG whose chunks have correct checksums. Other data are not changed."""
    if not data.startswith(SIGNATURE):
        return data
    at, repaired = len(SIGNATURE), bytearray(SIGNATURE)
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        body = data[at + 4 : at + 8 + length]
        repaired += data[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return bytes(repaired)
