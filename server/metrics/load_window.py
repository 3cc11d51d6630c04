"""The expert load of the last five minutes: the difference of two readings of the counters."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from prismoe.kernels.balance import Counts
from prismoe.server.metrics.expert_load import ExpertLoad

WINDOW_S = 300
STEPS = 60


@dataclass(frozen=True)
class Counted:
    """Counts of tokens, since the start or in a window."""

    used: tuple[Counts, ...]
    """For each MoE layer the number of tokens that used each expert: `[modality, expert]`."""
    tokens_M: Counts
    """The number of tokens of each modality. A token counts once, not in every layer."""

    @classmethod
    def of(cls, load: ExpertLoad) -> "Counted":
        """Return the counts of a reading."""
        used = tuple(np.array(rows, dtype=np.int64) for rows in load.expert_tokens)
        # Every MoE layer sees every token.
        tokens = load.tokens[0] if load.tokens else [0] * len(load.modalities)
        return cls(used, np.array(tokens, dtype=np.int64))

    def since(self, earlier: "Counted") -> "Counted":
        """Return the counts between an earlier reading and this one."""
        used = tuple(now - before for now, before in zip(self.used, earlier.used, strict=True))
        return Counted(used, self.tokens_M - earlier.tokens_M)


class LoadWindow:
    """The readings of the last WINDOW_S seconds. At most about STEPS are kept, so that memory is bounded.

    A reading is valid until the next one, because an idle engine is not read.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._readings: deque[tuple[float, Counted]] = deque()

    def add(self, load: ExpertLoad) -> None:
        """Add a reading that was made now."""
        now = self._clock()
        readings = self._readings
        if len(readings) > 1 and readings[-1][0] - readings[-2][0] < WINDOW_S / STEPS:
            readings.pop()
        readings.append((now, Counted.of(load)))
        while len(readings) > 1 and readings[1][0] <= now - WINDOW_S:
            readings.popleft()

    def counted(self) -> Counted:
        """Return the counts of the window that ends now. This needs at least one reading."""
        readings = tuple(self._readings)  # A copy, because another thread may add a reading.
        start = self._clock() - WINDOW_S
        before = [counted for at, counted in readings if at <= start]
        return readings[-1][1].since(before[-1] if before else readings[0][1])
