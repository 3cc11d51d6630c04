"""The program that decodes one video. It can open no file and no connection; its memory and time are limited.

It is run by its path, and imports nothing of prismoe. Its arguments are the bytes of memory and the seconds
of CPU time that it may take, and the length of the file. It reads the file from its input, and then calls of
`cv2.VideoCapture`'s methods, each a line of JSON. It answers each call with a line of JSON on its output;
after the line of a frame come the frame's bytes.
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
"""The number that the next opened file would get, after those of input, output and errors."""


def main() -> None:
    """Decode until the input ends."""
    memory, seconds, length = map(int, sys.argv[1:])
    data = sys.stdin.buffer.read(length)
    limit_resources(memory, seconds)
    file: Any = BytesIO(data)  # Any, because OpenCV's type for this parameter does not exist at run time.
    capture = cv2.VideoCapture(file, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, THREADS])
    for line in sys.stdin.buffer:
        name, *arguments = json.loads(line)
        answer, frame = call(capture, name, arguments)
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n" + frame)
        sys.stdout.buffer.flush()


def call(capture: cv2.VideoCapture, name: str, arguments: list[Any]) -> tuple[Any, bytes]:
    """Call a method and return its answer, and a frame's bytes. A frame's answer is its height and width."""
    if name != "retrieve":
        return getattr(capture, name)(*arguments), b""
    _, frame = capture.retrieve()
    if frame is None:
        return None, b""
    return frame.shape[:2], frame.tobytes()


def limit_resources(memory: int, seconds: int) -> None:
    """Limit this process to so many more bytes of memory, seconds of CPU time, and no more open files."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    max_bytes = pages * os.sysconf("SC_PAGE_SIZE") + memory
    resource.setrlimit(resource.RLIMIT_AS, (max_bytes, max_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (FIRST_FREE, FIRST_FREE))


if __name__ == "__main__":
    main()
