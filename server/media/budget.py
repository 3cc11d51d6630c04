"""How much memory all images and videos together may hold: their files, and their pixels once decoded.

A few bytes can say millions of pixels, and a short URL can name a large file, so limits on requests and their
bytes do not bound this memory.
"""

import threading
import weakref
from collections import deque

BYTES_PER_PIXEL = 3


class BudgetSpent(Exception):
    """There is no memory for another one now."""


class MediaBudget:
    """Counts the bytes of images and of videos' frames until each is gone."""

    def __init__(self, max_mib: int) -> None:
        self._most = max_mib * 2**20
        self._held = 0
        self._lock = threading.Lock()
        # They go when they are collected, in any thread and at any line: what happens then takes no lock.
        self._returned: deque[int] = deque()

    def take(self, count: int) -> None:
        """Make room for so many bytes. Raises BudgetSpent."""
        with self._lock:
            while self._returned:
                self._held -= self._returned.popleft()
            if self._held + count > self._most:
                raise BudgetSpent
            self._held += count

    def give_back(self, count: int) -> None:
        """It is not there after all."""
        self._returned.append(count)

    def give_back_after(self, pixels: object, count: int) -> None:
        """Give back what was taken for an image or for frames once these are gone."""
        weakref.finalize(pixels, self._returned.append, count).atexit = False
