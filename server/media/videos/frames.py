"""Decodes untrusted bytes to the frames of a video that vLLM's own loader samples, within limits.

The bytes decide the container. The length and size in its header are checked before vLLM's loader chooses
frames, and the number of frames is checked before they are kept. The frames and their metadata are vLLM's.
"""

import math
from collections.abc import Mapping
from typing import Any

import cv2
from vllm import envs
from vllm.multimodal.media import MediaWithBytes, VideoMediaIO
from vllm.multimodal.video import VIDEO_LOADER_REGISTRY

from prismoe.model_plugins.vllm_seams.front.videos import BACKEND, decoding_by
from prismoe.server.media.budget import BYTES_PER_PIXEL, BudgetSpent, MediaBudget
from prismoe.server.media.decode import check_size
from prismoe.server.media.refusal import DAMAGED, MediaRefused
from prismoe.server.media.settings import MediaSettings
from prismoe.server.media.videos.capture import DecodedVideo

CONTAINERS = "an MP4, QuickTime, WebM, Matroska or AVI"
MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free")
ONE_DECODER = f"prismoe decodes videos only with {BACKEND}, in a process with limits"
EBML = b"\x1a\x45\xdf\xa3"

Video = MediaWithBytes[tuple[Any, dict[str, Any]]]


def decode_video(data: bytes, video_io: VideoMediaIO, settings: MediaSettings, budget: MediaBudget) -> Video:
    """Return the frames that vLLM's loader samples, and the loader's metadata.

    The frames count against `budget` until they are collected. Raises MediaRefused, or BudgetSpent.
    """
    if not _is_video(data):
        raise MediaRefused(f"it is not {CONTAINERS}")
    taken = 0

    def expect(frames: int, width: int, height: int) -> None:
        nonlocal taken
        pixels = frames * width * height
        if pixels > settings.max_video_pixels:
            raise MediaRefused(
                f"its {frames} sampled frames have {width} x {height} pixels each, and may have at most "
                f"{settings.max_video_pixels:,} pixels together"
            )
        budget.take(pixels * BYTES_PER_PIXEL)
        taken += pixels * BYTES_PER_PIXEL

    try:
        with DecodedVideo(data, settings.decode_seconds, expect) as capture:
            _check_header(capture, settings)
            with decoding_by(capture):
                video: Video = video_io.load_bytes(data)
        frames = video.media[0]
        if not len(frames):
            raise MediaRefused("none of its frames can be decoded")
    except BaseException as error:
        budget.give_back(taken)
        if isinstance(error, MediaRefused | BudgetSpent) or not isinstance(error, Exception):
            raise
        if isinstance(error, MemoryError):
            raise MediaRefused("there is not enough memory for it now") from error
        raise MediaRefused(DAMAGED) from error  # vLLM's loaders raise many kinds of errors.
    budget.give_back_after(frames, taken)
    return video


def _is_video(data: bytes) -> bool:
    is_avi = data.startswith(b"RIFF") and data[8:12] == b"AVI "
    return data[4:8] in MP4_BOXES or data.startswith(EBML) or is_avi


def _check_header(capture: DecodedVideo, settings: MediaSettings) -> None:
    count, rate = capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.get(cv2.CAP_PROP_FPS)
    width, height = capture.size
    if width < 1 or height < 1:
        raise MediaRefused("it is damaged, or this server does not know its codec")
    check_size(width, height, settings.max_image_pixels)
    if not (math.isfinite(count) and count >= 1 and math.isfinite(rate) and rate > 0):
        raise MediaRefused(
            "its header lacks the number of frames or the frame rate: write it to another container, for "
            "example with ffmpeg -i IN -c copy OUT.mp4"
        )
    if count > settings.max_video_frames:
        raise MediaRefused(f"it has {count:,.0f} frames, and may have at most {settings.max_video_frames:,}")
    if count / rate > settings.max_video_seconds:
        raise MediaRefused(
            f"it is {count / rate:,.0f} s long, and may be at most {settings.max_video_seconds:g} s long"
        )


def check_media_io(options: Mapping[str, Mapping[str, Any]] | None) -> None:
    """Raise ValueError with a sentence if `--media-io-kwargs` has a value that prismoe does not support."""
    image, video = (options or {}).get("image", {}), (options or {}).get("video", {})
    if image.get("image_mode", "RGB") != "RGB":
        raise ValueError("--media-io-kwargs: prismoe decodes images only to RGB: leave image.image_mode out.")
    if video.get("backend", BACKEND) != BACKEND:
        raise ValueError(f"--media-io-kwargs: {ONE_DECODER}: leave video.backend out.")
    for place, loader in (
        ("--media-io-kwargs: video.video_backend", video.get("video_backend", "")),
        ("VLLM_VIDEO_LOADER_BACKEND", envs.VLLM_VIDEO_LOADER_BACKEND),
    ):
        if VIDEO_LOADER_REGISTRY.backend_requires_gpu(loader):
            raise ValueError(f"{place} is {loader}, but {ONE_DECODER}: leave it out.")
