"""10,000 broken images: each soon becomes a picture or is refused with a message, and no memory is kept."""

import gc
import hashlib
import re
import time
from collections import Counter

import psutil

from prismoe.server.media.budget import MediaBudget
from prismoe.server.media.decode import decode
from prismoe.server.media.refusal import MediaRefused
from tests.server.fuzz.images import mutated_image, seed_images

IMAGES = 10_000
MAX_PIXELS = 25_000_000
BUDGET = MediaBudget(100)


def outcome(data: bytes) -> str:
    """The result for an image. Everything except a picture or MediaRefused is raised."""
    try:
        image = decode(data, MAX_PIXELS, BUDGET)
    except MediaRefused as refusal:
        assert not re.search(r"0x|object|/|<", str(refusal))
        return str(refusal)
    assert image.mode == "RGB" and 0 < image.width * image.height <= MAX_PIXELS
    return "picture"


def test_the_seeds_are_pictures() -> None:
    assert len(seed_images()) >= 20
    assert {outcome(seed) for seed in seed_images()} == {"picture"}


def test_a_number_always_gives_the_same_image() -> None:
    digest = hashlib.sha256(b"".join(mutated_image(number) for number in range(100))).hexdigest()
    assert digest[:16] == "f889af011795f608"


def test_broken_images() -> None:
    process = psutil.Process()
    outcomes: Counter[str] = Counter()
    before = 0
    for number in range(IMAGES):
        start = time.monotonic()
        outcomes[outcome(mutated_image(number))] += 1
        assert time.monotonic() - start < 3, number
        if number == 1000:
            gc.collect()
            before = process.memory_info().rss
    gc.collect()
    assert process.memory_info().rss < 1.1 * before
    # The mutations reach the decoders: not all images are refused before, and some are broken.
    assert outcomes["picture"] > IMAGES / 20
    assert outcomes["it is damaged or cut short"] > IMAGES / 20
    assert outcomes["it is not a PNG, JPEG, WebP or GIF"] < IMAGES / 2
    assert any(reason.startswith("it has") and "pixels" in reason for reason in outcomes)
