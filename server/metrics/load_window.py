"""The expert load of the last few minutes: the difference of two readings of the counters."""

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
    """What was counted, since the start or within a window."""

    used: tuple[Counts, ...]
    """By MoE layer: `[modality, expert]`, how many tokens used the expert."""
    tokens_M: Counts
    """By modality, each token once."""

    @classmethod
    def of(cls, load: ExpertLoad) -> "Counted":
        """A reading, as arrays."""
        used = tuple(np.array(rows, dtype=np.int64) for rows in load.expert_tokens)
        # Every MoE layer sees every token.
        tokens = load.tokens[0] if load.tokens else [0] * len(load.modalities)
        return cls(used, np.array(tokens, dtype=np.int64))

    def since(self, earlier: "Counted") -> "Counted":
        """What was counted between an earlier reading and this one."""
        used = tuple(now - before for now, before in zip(self.used, earlier.used, strict=True))
        return Counted(used, self.tokens_M - earlier.tokens_M)


class LoadWindow:
    """Readings of the last WINDOW_S seconds, thinned to about STEPS, so that memory is bounded.

    A reading holds until the next one: the engine is not asked while it does nothing.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._readings: deque[tuple[float, Counted]] = deque()

    def add(self, load: ExpertLoad) -> None:
        """Note a reading made now."""
        now = self._clock()
        readings = self._readings
        if len(readings) > 1 and readings[-1][0] - readings[-2][0] < WINDOW_S / STEPS:
            readings.pop()
        readings.append((now, Counted.of(load)))
        while len(readings) > 1 and readings[1][0] <= now - WINDOW_S:
            readings.popleft()

    def counted(self) -> Counted:
        """What was counted in the window that ends now. There must have been a reading."""
        readings = tuple(self._readings)  # at once, as another thread may add one
        start = self._clock() - WINDOW_S
        before = [counted for at, counted in readings if at <= start]
        return readings[-1][1].since(before[-1] if before else readings[0][1])
