"""How many pixels all decoded images together may hold.

A few bytes can say millions of pixels, so limits on requests and their bytes do not bound this memory.
"""

import threading
import weakref
from collections import deque

from PIL import Image

BYTES_PER_PIXEL = 3


class BudgetSpent(Exception):
    """There is no memory for another image now."""


class PixelBudget:
    """Counts the pixels of decoded images until each image is gone."""

    def __init__(self, max_mib: int) -> None:
        self._most = max_mib * 2**20 // BYTES_PER_PIXEL
        self._held = 0
        self._lock = threading.Lock()
        # Images go when they are collected, in any thread and at any line: what happens then takes no lock.
        self._returned: deque[int] = deque()

    def take(self, pixels: int) -> None:
        """Make room for an image. Raises BudgetSpent."""
        with self._lock:
            while self._returned:
                self._held -= self._returned.popleft()
            if self._held + pixels > self._most:
                raise BudgetSpent
            self._held += pixels

    def give_back(self, pixels: int) -> None:
        """The image is not there after all."""
        self._returned.append(pixels)

    def give_back_after(self, image: Image.Image, pixels: int) -> None:
        """Give back what was taken for an image once the image is gone."""
        weakref.finalize(image, self._returned.append, pixels).atexit = False
