"""The memory budget of all images and videos together: their files, and their decoded pixels.

A few bytes can describe millions of pixels, and a short URL can name a large file. So the limits on requests
and their bodies do not limit this memory.
"""

import threading
import weakref
from collections import deque

BYTES_PER_PIXEL = 3


class BudgetSpent(Exception):
    """The budget has no room for another image or video now."""


class MediaBudget:
    """Counts the bytes of images and of videos' frames until they are garbage-collected."""

    def __init__(self, max_mib: int) -> None:
        self._max_bytes = max_mib * 2**20
        self._taken_bytes = 0
        self._lock = threading.Lock()
        # Objects can be collected in any thread and between any two lines, so `give_back` must take no lock.
        self._returned: deque[int] = deque()

    def take(self, count: int) -> None:
        """Take this number of bytes from the budget. Raises BudgetSpent if fewer are left."""
        with self._lock:
            while self._returned:
                self._taken_bytes -= self._returned.popleft()
            if self._taken_bytes + count > self._max_bytes:
                raise BudgetSpent
            self._taken_bytes += count

    def give_back(self, count: int) -> None:
        """Return this number of bytes to the budget."""
        self._returned.append(count)

    def give_back_after(self, pixels: object, count: int) -> None:
        """Return this number of bytes to the budget when `pixels`, an image or frames, are collected."""
        weakref.finalize(pixels, self._returned.append, count).atexit = False
