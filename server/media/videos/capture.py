"""A replacement of `cv2.VideoCapture` that decodes untrusted bytes in a separate process (`decoder`).

FFmpeg is a large C program, and a malicious file may take control of it. In its own process it can open no
file and no connection, and its memory and time are limited, so it can only harm its own request. It can still
answer wrongly, so its answers are checked.
"""

import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import cv2
import numpy as np

from prismoe.server.media.refusal import DAMAGED, MediaRefused

PROGRAM = Path(__file__).with_name("decoder.py")

DECODER_MIB = 1024
"""The most memory for decoding a video beside its file. It holds the frames that other frames refer to."""

THREADS_OF_CPU = 2

ENVIRONMENT = {
    # Other formats can name files and servers (playlists), or never end (images in a loop).
    "OPENCV_FFMPEG_CAPTURE_OPTIONS": "format_whitelist;mov,matroska,avi|protocol_whitelist;none",
    "OPENCV_FFMPEG_LOGLEVEL": "-8",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
}

KEPT = ("LD_LIBRARY_PATH",)
"""The variables that the process gets of the server's environment. It must not get keys."""

CHANNELS = 3
MAX_LINE_BYTES = 200

Expect = Callable[[int, int, int], None]
"""A check of the number of frames that will be kept, and of their width and height. It may raise."""


class DecodedVideo:
    """The capture of one video. Its process ends with its context.

    The constructor and the methods raise MediaRefused if the process fails or takes too long.
    """

    def __init__(self, data: bytes, seconds: float, expect: Expect) -> None:
        self._seconds, self._expect = seconds, expect
        cpu = math.ceil(seconds * THREADS_OF_CPU)
        limits = (DECODER_MIB * 2**20 + 2 * len(data), cpu, len(data))
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(PROGRAM), *map(str, limits)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(),
            cwd="/",
        )
        assert self._process.stdin and self._process.stdout
        self._to: IO[bytes] = self._process.stdin
        self._from: IO[bytes] = self._process.stdout
        self._is_late = False
        self._timer = threading.Timer(seconds, self._end_late)
        self._timer.daemon = True
        self._timer.start()
        self._size = (0, 0)
        try:
            self._send(data)
            self._size = (int(self.get(cv2.CAP_PROP_FRAME_WIDTH)), int(self.get(cv2.CAP_PROP_FRAME_HEIGHT)))
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> Self:
        """Return the capture."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process."""
        self._end()

    @property
    def size(self) -> tuple[int, int]:
        """The width and height of each frame, from the video's header."""
        return self._size

    def get(self, prop: int) -> float:
        """Return a property of OpenCV's."""
        return float(self._ask("get", prop))

    def set(self, prop: int, value: float) -> bool:
        """Set a property of OpenCV's, and return whether that succeeded."""
        return bool(self._ask("set", prop, value))

    def grab(self) -> bool:
        """Go to the next frame, and return whether there is one."""
        return bool(self._ask("grab"))

    def retrieve(self) -> tuple[bool, np.ndarray | None]:
        """Return the frame that was grabbed, in BGR. Raises MediaRefused if its size is not the header's."""
        shape = self._ask("retrieve")
        if shape is None:
            return False, None
        width, height = self._size
        if shape != [height, width]:
            raise MediaRefused("its frames are not all of one size")
        return True, np.frombuffer(self._read(height * width * CHANNELS), np.uint8).reshape(
            height, width, CHANNELS
        )

    def expect(self, frames: int) -> None:
        """Check that this number of frames may be kept, with the function that the constructor got."""
        self._expect(frames, *self._size)

    def _ask(self, *call: object) -> Any:
        self._send(json.dumps(call).encode() + b"\n")
        line = self._from.readline(MAX_LINE_BYTES)
        if not line.endswith(b"\n"):
            raise self._broken()
        return json.loads(line)

    def _send(self, data: bytes) -> None:
        try:
            self._to.write(data)
            self._to.flush()
        except OSError as error:
            raise self._broken() from error

    def _read(self, count: int) -> bytes:
        data = self._from.read(count)
        if len(data) < count:
            raise self._broken()
        return data

    def _broken(self) -> MediaRefused:
        """Return an error that says why the process ended."""
        if self._is_late:
            return MediaRefused(f"decoding it took longer than {self._seconds:g} s")
        return MediaRefused(f"{DAMAGED}, or decoding it needs more than {DECODER_MIB} MiB")

    def _end_late(self) -> None:
        self._is_late = True
        self._process.kill()

    def _end(self) -> None:
        self._timer.cancel()
        self._process.kill()
        with self._process:  # This closes the pipes, and waits for the process.
            pass


def _environment() -> dict[str, str]:
    """Return the decoder's environment variables, with which it finds the same modules as this process."""
    modules = os.pathsep.join(folder for folder in sys.path if folder)
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    return ENVIRONMENT | kept | {"PYTHONPATH": modules}
