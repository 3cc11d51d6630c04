"""Lets vLLM decode videos with another capture in place of OpenCV's own."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import numpy as np
from vllm.multimodal.video_decoders import VideoSourceMetadata, VideoTargetMetadata, opencv

from prismoe.model_plugins.vllm_seams.check import Needed

NEEDS = [
    Needed(
        "vllm.multimodal.video_decoders.opencv:decode_opencv",
        parameters=("loader_cls", "data", "target", "sampling_kwargs", "frame_recovery"),
        attributes=("get_video_metadata", "_prepare_source", "compute_frames_index_to_sample", "read_frames"),
    ),
    Needed("vllm.multimodal.video_decoders:decode_video", parameters=("backend", "loader_cls", "data")),
    Needed(
        "vllm.multimodal.video_decoders.opencv:OpenCVVideoBackendMixin.open_video_capture",
        parameters=("data",),
    ),
    Needed(
        "vllm.multimodal.video_decoders.opencv:OpenCVVideoBackendMixin.get_video_metadata",
        parameters=("cap|data",),
    ),
]

BACKEND = "opencv"
"""vLLM's name of the only decoder that this changes."""

Decoded = tuple[np.ndarray, VideoSourceMetadata, list[int], list[int]]


class Capture(Protocol):
    """The methods of `cv2.VideoCapture` that vLLM's loaders use."""

    def get(self, prop: int) -> float:
        """Get a property."""

    def set(self, prop: int, value: float) -> bool:
        """Set a property, such as the place in the video."""

    def grab(self) -> bool:
        """Go to the next frame."""

    def retrieve(self) -> tuple[bool, np.ndarray | None]:
        """The grabbed frame, in BGR."""

    def expect(self, frames: int) -> None:
        """Announce the number of frames that will be retrieved. Raises where they are too many."""


_in_use: ContextVar[Capture | None] = ContextVar("prismoe_capture", default=None)
_mixin: Any = opencv.OpenCVVideoBackendMixin
_vllms = opencv.decode_opencv
_vllms_open = _mixin.open_video_capture


@contextmanager
def decoding_by(capture: Capture) -> Iterator[None]:
    """Make vLLM's loaders read the frames of `capture` in this context."""
    opencv.decode_opencv = _decode
    _mixin.open_video_capture = staticmethod(_open)
    token = _in_use.set(capture)
    try:
        yield
    finally:
        _in_use.reset(token)


def _open(data: bytes) -> Any:
    """The capture in use. vLLM 0.32 reads metadata from it; 0.33 opens one for the metadata with this."""
    capture = _in_use.get()
    return _vllms_open(data) if capture is None else capture


def _decode(
    loader_cls: Any,
    data: bytes,
    target: VideoTargetMetadata,
    sampling_kwargs: dict[str, Any],
    *,
    frame_recovery: bool = False,
) -> Decoded:
    """Decode as vLLM's `decode_opencv` does, but with the capture in use."""
    capture: Any = _in_use.get()
    if capture is None:
        return _vllms(loader_cls, data, target, sampling_kwargs, frame_recovery=frame_recovery)
    source = loader_cls._prepare_source(_mixin.get_video_metadata(capture))
    sampled: Sequence[int] = loader_cls.compute_frames_index_to_sample(
        source=source, target=target, **sampling_kwargs
    )
    capture.expect(len(sampled))
    frames, valid = loader_cls.read_frames(
        capture, sampled, total_frames_num=source.total_frames_num, frame_recovery=frame_recovery
    )
    return frames, source, list(sampled), valid
