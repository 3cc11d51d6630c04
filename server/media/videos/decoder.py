"""The process that decodes one video: it opens no file and no connection; its memory and time are bounded.

It is run by its path, imports nothing of prismoe's, and is told the bytes of memory and the seconds of one
CPU that it may take, and the length of the file. On its input come the file and then calls of
`cv2.VideoCapture`'s methods, a line of JSON each; on its output goes a line for each, and behind that of a
frame the frame's bytes.
"""

import json
import os
import resource
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2

THREADS = 2
FIRST_FREE = 3
"""The number of the next file that is opened: there are input, output and errors."""


def main() -> None:
    """Decode until the input ends."""
    memory, seconds, length = map(int, sys.argv[1:])
    data = sys.stdin.buffer.read(length)
    bound(memory, seconds)
    file: Any = BytesIO(data)  # OpenCV's own type for it has no name at run time.
    capture = cv2.VideoCapture(file, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, THREADS])
    for line in sys.stdin.buffer:
        name, *arguments = json.loads(line)
        answer, frame = called(capture, name, arguments)
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n" + frame)
        sys.stdout.buffer.flush()


def called(capture: cv2.VideoCapture, name: str, arguments: list[Any]) -> tuple[Any, bytes]:
    """What a method returns; of a frame its height and width, and its bytes."""
    if name != "retrieve":
        return getattr(capture, name)(*arguments), b""
    _, frame = capture.retrieve()
    if frame is None:
        return None, b""
    return frame.shape[:2], frame.tobytes()


def bound(memory: int, seconds: int) -> None:
    """Let this process take so much memory beside what it has, and so much time, and open nothing more."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + memory
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (FIRST_FREE, FIRST_FREE))


if __name__ == "__main__":
    main()
