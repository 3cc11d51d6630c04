"""Small videos, written by OpenCV."""

import tempfile
from pathlib import Path

import cv2
import numpy as np

CODECS = {"mp4": "mp4v", "avi": "MJPG", "webm": "VP80"}


def clip(frames: int = 25, rate: float = 10, size: tuple[int, int] = (64, 48), kind: str = "mp4") -> bytes:
    """A video whose frames all differ: a square moves over a gradient of greys."""
    width, height = size
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"clip.{kind}"
        writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*CODECS[kind]), rate, size)
        slope = np.linspace(0, 200, width, dtype=np.uint8)
        for number in range(frames):
            frame = np.repeat(np.tile(slope, (height, 1))[..., None], 3, axis=2)
            at = number * 2 % (width // 2)
            frame[at % height : at % height + 8, at : at + 8] = (255, number * 9 % 256, 0)
            writer.write(frame)
        writer.release()
        return file.read_bytes()
