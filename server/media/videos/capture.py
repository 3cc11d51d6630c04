"""A `cv2.VideoCapture` of untrusted bytes, which FFmpeg reads in a process of its own (`decoder`).

FFmpeg is a large body of C that files drive. What it can do there to this process is to answer wrongly, so
its answers are checked: no file is opened for it, no server asked, and what it takes or how it dies harms
its own request alone.
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
"""What decoding a video may take beside its file: the frames that others refer to, before they are RGB."""

THREADS_OF_CPU = 2

ENVIRONMENT = {
    # Other formats name files and servers (playlists), or run for ever (images in a loop).
    "OPENCV_FFMPEG_CAPTURE_OPTIONS": "format_whitelist;mov,matroska,avi|protocol_whitelist;none",
    "OPENCV_FFMPEG_LOGLEVEL": "-8",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
}

KEPT = ("LD_LIBRARY_PATH",)
"""What the process gets of the server's own environment: no keys."""

CHANNELS = 3
MOST_IN_LINE = 200

Expect = Callable[[int, int, int], None]
"""Is told of the frames that will be kept, their width and their height."""


class DecodedVideo:
    """The capture of one video, open as long as its context."""

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
        """The capture itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process."""
        self._end()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of each frame, as the header says."""
        return self._size

    def get(self, prop: int) -> float:
        """A property, as in OpenCV."""
        return float(self._ask("get", prop))

    def set(self, prop: int, value: float) -> bool:
        """Set a property."""
        return bool(self._ask("set", prop, value))

    def grab(self) -> bool:
        """Decode the next frame."""
        return bool(self._ask("grab"))

    def retrieve(self) -> tuple[bool, np.ndarray | None]:
        """The frame that was grabbed, in BGR. All frames have one size."""
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
        """Have it checked that so many frames may be kept."""
        self._expect(frames, *self._size)

    def _ask(self, *call: object) -> Any:
        self._send(json.dumps(call).encode() + b"\n")
        line = self._from.readline(MOST_IN_LINE)
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
        """Why the process is gone."""
        if self._is_late:
            return MediaRefused(f"decoding it took longer than {self._seconds:g} s")
        return MediaRefused(f"{DAMAGED}, or its decoder wants more than {DECODER_MIB} MiB")

    def _end_late(self) -> None:
        self._is_late = True
        self._process.kill()

    def _end(self) -> None:
        self._timer.cancel()
        self._process.kill()
        with self._process:  # closes the pipes, and waits
            pass


def _environment() -> dict[str, str]:
    """The decoder's environment, in which it finds the same modules as this process."""
    modules = os.pathsep.join(folder for folder in sys.path if folder)
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    return ENVIRONMENT | kept | {"PYTHONPATH": modules}
