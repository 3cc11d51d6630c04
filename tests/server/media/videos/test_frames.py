"""Videos: the frames and metadata of vLLM's own loaders, within the rules for media."""

import asyncio
import base64
import gc
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vllm.exceptions import GracefulHTTPError, VLLMValidationError
from vllm.multimodal.media import AudioMediaIO, ImageMediaIO, VideoMediaIO
from vllm.multimodal.video_decoders import VideoSourceMetadata
from vllm.multimodal.video_decoders.opencv import OpenCVVideoBackendMixin

from prismoe.server.media.budget import MediaBudget
from prismoe.server.media.connector import RequestMedia
from prismoe.server.media.refusal import MediaRefused
from prismoe.server.media.settings import MediaSettings
from prismoe.server.media.videos import capture, decoder
from prismoe.server.media.videos.capture import DecodedVideo
from prismoe.server.media.videos.frames import check_media_io
from tests.server.media.clips import CODECS, clip
from tests.server.media.pictures import encoded, two_colours

MIB = 2**20
CLIP = clip()
NO_VIDEO = "it is not an MP4, QuickTime, WebM, Matroska or AVI."
UNSAID = "its header lacks the number of frames or the frame rate"


def accepted(frames: int, width: int, height: int) -> None:
    """Accepts any number of frames of any size."""


def video_url(data: bytes) -> str:
    return "data:video/mp4;base64," + base64.b64encode(data).decode()


def connector(**settings: Any) -> RequestMedia:
    made = RequestMedia()
    made.settings = MediaSettings.model_validate(settings)
    made.budget = MediaBudget(made.settings.max_media_mib)
    return made


def refusal(data: bytes, **settings: Any) -> str:
    with pytest.raises(VLLMValidationError) as refused:
        connector(**settings).fetch_video(video_url(data))
    return str(refused.value).removeprefix("A video of the request can't be read: ")


@pytest.mark.parametrize("kind", CODECS)
@pytest.mark.parametrize("loader", ["opencv", "qwen3_vl", "qwen2_vl", "opencv_dynamic", "glm46v"])
def test_frames_and_metadata_are_those_of_vllms_loader(kind: str, loader: str) -> None:
    data = clip(kind=kind)
    io = VideoMediaIO(ImageMediaIO(), num_frames=8, video_backend=loader)
    stock, ours = io.load_bytes(data), RequestMedia().load_from_url(video_url(data), io)
    assert ours.media[0].dtype == np.uint8 and ours.media[0].shape[1:] == (48, 64, 3)
    assert np.array_equal(stock.media[0], ours.media[0]) and len(ours.media[0]) >= 4
    assert stock.media[1] == ours.media[1]
    assert ours.original_bytes == data


@pytest.mark.parametrize("kind", CODECS)
def test_vllms_metadata_reader_uses_the_open_capture(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM 0.33 opens a video for its metadata with a function of the bytes."""
    data, io = clip(kind=kind), VideoMediaIO(ImageMediaIO(), num_frames=8, video_backend="opencv")
    stock = io.load_bytes(data)
    opened: list[Any] = []
    read_capture = OpenCVVideoBackendMixin.get_video_metadata

    def get_video_metadata(data: bytes) -> VideoSourceMetadata:
        opened.append(OpenCVVideoBackendMixin.open_video_capture(data))
        return read_capture(opened[-1])

    monkeypatch.setattr(OpenCVVideoBackendMixin, "get_video_metadata", staticmethod(get_video_metadata))
    ours = RequestMedia().load_from_url(video_url(data), io)
    assert np.array_equal(stock.media[0], ours.media[0]) and stock.media[1] == ours.media[1]
    [used] = opened
    assert isinstance(used, DecodedVideo)
    assert not isinstance(OpenCVVideoBackendMixin.open_video_capture(data), DecodedVideo)


def test_the_models_processor_and_the_operator_set_the_sampling() -> None:
    def sampled(io_kwargs: dict[str, Any], processor: str | None = None) -> list[int]:
        media = RequestMedia({"video": io_kwargs}).fetch_video(video_url(CLIP), video_processor=processor)
        indices: list[int] = media.media[1]["frames_indices"]
        return indices

    assert sampled({"num_frames": 3}) == [0, 12, 24]
    assert sampled({}) == list(range(25))
    assert sampled({}, "Qwen3VLVideoProcessor") == [0, 6, 12, 18, 24]
    assert sampled({"fps": 4}, "Qwen3VLVideoProcessor") == [0, 3, 5, 8, 11, 13, 16, 19, 21, 24]
    assert sampled({"num_frames": 4, "frame_recovery": True}) == [0, 8, 16, 24]


@pytest.mark.parametrize(
    "data",
    [
        b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n",
        b"ffconcat version 1.0\nfile '/etc/hostname'\n",
        b"<?xml version='1.0'?><MPD></MPD>",
        encoded(two_colours(), "GIF"),
        encoded(two_colours()),
        b"RIFF\0\0\0\0WAVE",
        b"G" + bytes(187),
        b"\0",
    ],
)
def test_only_video_files_are_decoded(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("was given to the decoder"))
    assert refusal(data) == NO_VIDEO


def test_pictures_in_a_data_url_are_not_a_video() -> None:
    picture = base64.b64encode(encoded(two_colours(), "JPEG")).decode()
    with pytest.raises(VLLMValidationError, match="the text of its data URL is not base64"):
        RequestMedia().fetch_video(f"data:video/jpeg;base64,{picture},{picture}")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"max_video_mib": 0.001}, "it has more than 1,048 bytes."),
        ({"max_video_seconds": 2}, "it is 2 s long, and may be at most 2 s long."),
        ({"max_video_frames": 24}, "it has 25 frames, and may have at most 24."),
        ({"max_image_pixels": 3000}, "it has 64 x 48 pixels, and may have at most 3,000."),
        (
            {"max_video_pixels": 25 * 64 * 48 - 1},
            "its 25 sampled frames have 64 x 48 pixels each, and may have at most 76,799 pixels together.",
        ),
        ({"decode_seconds": 0.001}, "decoding it took longer than 0.001 s."),
    ],
)
def test_the_operators_limits(settings: dict[str, Any], reason: str) -> None:
    assert refusal(CLIP, **settings) == reason


def test_values_at_the_limits_are_accepted() -> None:
    limits = {"max_video_seconds": 2.5, "max_video_frames": 25, "max_video_pixels": 25 * 64 * 48}
    assert len(connector(**limits).fetch_video(video_url(CLIP)).media[0]) == 25


def test_a_side_is_bounded_as_an_images() -> None:
    assert "and a side may have at most 8,192" in refusal(clip(1, size=(8208, 96), kind="avi"))
    assert "a side may be at most 100 times the other" in refusal(clip(1, size=(2000, 16), kind="avi"))


def stream_header(data: bytes, at: int, *numbers: int) -> bytes:
    """An AVI with other numbers in the header of its stream."""
    start = data.index(b"strh") + 8 + at
    return data[:start] + struct.pack(f"<{len(numbers)}I", *numbers) + data[start + 4 * len(numbers) :]


def test_the_header_is_compared_with_the_frames() -> None:
    avi = clip(kind="avi")
    assert refusal(stream_header(avi, 32, 10**6)) == "it has 1,000,000 frames, and may have at most 10,000."
    assert refusal(stream_header(avi, 20, 1000, 1)) == "it is 25,000 s long, and may be at most 300 s long."
    webm = clip(kind="webm")
    assert webm.count(b"\x44\x89\x88") == 1
    endless = webm.replace(b"\x44\x89\x88", b"\xec\x89\x88")  # its duration becomes filler
    assert refusal(endless).startswith(UNSAID)


def test_a_frame_with_another_size_than_the_checked_one_is_dropped() -> None:
    with DecodedVideo(CLIP, 30, accepted) as video:
        video._size = (64, 47)
        assert video.grab()
        with pytest.raises(MediaRefused, match="its frames are not all of one size"):
            video.retrieve()


@pytest.mark.parametrize("keep", [40, 300, len(CLIP) - 200])
def test_a_truncated_video_is_reported_as_truncated(keep: int) -> None:
    assert refusal(CLIP[:keep]).startswith("it is damaged")


def test_memory_is_held_until_the_frames_are_freed() -> None:
    media = connector(max_media_mib=1)
    frames, file = 25 * 64 * 48 * 3, len(CLIP)
    held = [media.fetch_video(video_url(CLIP)) for _ in range(MIB // (frames + file))]
    assert len(held) == 4
    with pytest.raises(GracefulHTTPError, match="too many large images and videos") as spent:
        media.fetch_video(video_url(CLIP))
    assert spent.value.http_status == 429
    held.pop()
    gc.collect()
    held.append(media.fetch_video(video_url(CLIP)))
    held.clear()
    gc.collect()
    media.budget.take(MIB)


def test_a_refused_video_holds_no_memory() -> None:
    media = connector(max_media_mib=1)
    for data in (CLIP[:300], clip(kind="avi")[:2000], b"no video"):
        with pytest.raises(VLLMValidationError):
            media.fetch_video(video_url(data))
    media.settings = MediaSettings.model_validate({"max_video_pixels": 1})
    with pytest.raises(VLLMValidationError):
        media.fetch_video(video_url(CLIP))
    gc.collect()
    media.budget.take(MIB)


def test_a_decoder_that_dies_only_affects_its_video() -> None:
    with DecodedVideo(CLIP, 30, accepted) as video:
        assert video.size == (64, 48) and video.grab()
        video._process.kill()
        with pytest.raises(MediaRefused, match="it is damaged or cut short, or decoding it needs more than"):
            video.retrieve()
    assert video._process.poll() is not None


def test_a_decoder_without_memory_only_affects_its_video(monkeypatch: pytest.MonkeyPatch) -> None:
    large = clip(3, size=(1920, 1080))
    assert len(connector().fetch_video(video_url(large)).media[0]) == 3
    monkeypatch.setattr(capture, "DECODER_MIB", 0)
    assert "damaged" in refusal(large)


def test_the_decoder_does_not_support_playlists(tmp_path: Path) -> None:
    """This holds even if nothing has checked the bytes before."""
    (tmp_path / "clip.avi").write_bytes(clip(kind="avi"))
    for text in (
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{tmp_path}/clip.avi\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile '{tmp_path}/clip.avi'\n",
    ):
        with DecodedVideo(text.encode(), 30, accepted) as video:
            assert video.size == (-1, -1)


@pytest.mark.parametrize(
    ("attempt", "error"),
    [
        ("open('/etc/hostname')", "OSError"),
        ("__import__('socket').socket()", "OSError"),
        ("bytearray(2**28)", "MemoryError"),
        ("all(iter(int, 1) for _ in iter(int, 1))", ""),
    ],
)
def test_the_decoders_process_is_limited(attempt: str, error: str) -> None:
    program = (
        f"import socket, sys; sys.path.insert(0, {str(Path(decoder.__file__).parent)!r})\n"
        f"from decoder import limit_resources\nopen('/etc/hostname').close()\nbytearray(2**28)\n"
        f"limit_resources(2**27, 1)\ntry:\n    {attempt}\n"
        "except BaseException as error:\n    print(type(error).__name__)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert ended.stdout.strip() == error
    assert (ended.returncode == 0) is bool(error)


def test_the_decoder_sees_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    with DecodedVideo(CLIP, 30, accepted) as video:
        environment = Path(f"/proc/{video._process.pid}/environ").read_bytes()
    assert b"OPENCV_FFMPEG_CAPTURE_OPTIONS" in environment and b"secret" not in environment


def test_videos_do_not_block_the_event_loop_or_the_threads_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    names = list[str]()
    original: Callable[..., Any] = VideoMediaIO.load_bytes

    def load_bytes(self: VideoMediaIO, data: bytes) -> Any:
        import threading

        names.append(threading.current_thread().name)
        return original(self, data)

    monkeypatch.setattr(VideoMediaIO, "load_bytes", load_bytes)
    asyncio.run(RequestMedia().fetch_video_async(video_url(CLIP)))
    assert len(names) == 1 and names[0].startswith("decode-video")


def test_files_and_schemes_have_the_rules_of_images(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(CLIP)
    media = RequestMedia(allowed_local_media_path=str(tmp_path))
    assert len(media.fetch_video((tmp_path / "clip.mp4").as_uri()).media[0]) == 25
    for url in ("rtsp://127.0.0.1/live", "blob:1", "concat:a", str(tmp_path / "clip.mp4")):
        with pytest.raises(VLLMValidationError, match="must begin with data:, https:, http: or file:"):
            media.fetch_video(url)
    with pytest.raises(VLLMValidationError, match="this server fetches nothing"):
        media.fetch_video("https://example.com/clip.mp4")


def test_sound_is_not_taken() -> None:
    with pytest.raises(VLLMValidationError, match="takes only images and videos"):
        RequestMedia().load_from_url("data:audio/wav;base64,AAAA", AudioMediaIO())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"video": {"backend": "torchcodec"}}, "leave video.backend out"),
        ({"video": {"video_backend": "pynvvideocodec"}}, "video.video_backend is pynvvideocodec"),
        ({"image": {"image_mode": None}}, "leave image.image_mode out"),
    ],
)
def test_options_that_break_the_rules_stop_the_start(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        check_media_io(options)
    check_media_io({"video": {"backend": "opencv", "video_backend": "qwen3_vl", "num_frames": 4}})
    check_media_io(None)


def test_no_process_and_no_file_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    started = list[Any]()
    start = subprocess.Popen.__init__

    def noted(self: Any, *arguments: Any, **options: Any) -> None:
        started.append(self)
        start(self, *arguments, **options)

    monkeypatch.setattr(subprocess.Popen, "__init__", noted)
    for data in (CLIP, CLIP[:300], clip(kind="avi")[:900]):
        try:
            connector().fetch_video(video_url(data))
        except VLLMValidationError:
            continue
    assert len(started) == 3
    for process in started:
        assert process.returncode is not None and process.stdin.closed and process.stdout.closed
