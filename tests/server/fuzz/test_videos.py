"""Broken videos: each soon becomes frames or is refused with a message, and no memory is kept."""

import gc
import random
import re
import time
from collections import Counter

import pytest
from vllm.multimodal.media import ImageMediaIO, VideoMediaIO

from prismoe.server.media.budget import MediaBudget
from prismoe.server.media.refusal import MediaRefused
from prismoe.server.media.settings import MediaSettings
from prismoe.server.media.videos.frames import decode_video
from tests.server.fuzz.images import mutated
from tests.server.media.clips import CODECS, clip

VIDEOS = 90
MIB = 2**20
SETTINGS = MediaSettings.model_validate({"decode_seconds": 20})


def outcome(data: bytes, budget: MediaBudget) -> str:
    """The result for a video. Everything except frames or MediaRefused is raised."""
    io = VideoMediaIO(ImageMediaIO(), num_frames=8)
    try:
        frames, metadata = decode_video(data, io, SETTINGS, budget).media
    except MediaRefused as refusal:
        assert not re.search(r"0x|object|/|<", str(refusal))
        return str(refusal)
    assert 1 <= len(frames) <= 8 and metadata["total_num_frames"] <= SETTINGS.max_video_frames
    return "video"


@pytest.mark.slow
@pytest.mark.parametrize("kind", CODECS)
def test_broken_videos(kind: str) -> None:
    seed, budget = clip(kind=kind), MediaBudget(64)
    outcomes: Counter[str] = Counter()
    for number in range(VIDEOS // len(CODECS)):
        start = time.monotonic()
        outcomes[outcome(mutated(seed, random.Random(number)), budget)] += 1
        assert time.monotonic() - start < SETTINGS.decode_seconds + 5, number
    gc.collect()
    budget.take(64 * MIB)
    # The mutations reach the decoder: not all videos are refused before, and some are broken.
    assert outcomes["video"] > 0
    assert outcomes.total() - outcomes["video"] > 3
