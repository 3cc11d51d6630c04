"""A sketch of many values in bounded memory, which finds any of them by its rank.

It follows Manku, Rajagopalan and Lindsay, "Approximate medians and other quantiles in one pass and with
limited memory" (SIGMOD 1998), with buffers of weights 1, 2, 4 and so on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

CAPACITY = 2**15
"""The number of values that a buffer holds. Up to this many are kept exactly."""


@dataclass(frozen=True)
class Ranked:
    """Values in rising order, each of which represents one or more added values."""

    values_N: Tensor  # float64
    ends_N: Tensor  # int64: the number of added values up to and including each

    @classmethod
    def of(cls, values_N: Tensor, weights_N: Tensor) -> Self:
        """Rank weighted values. Raises ValueError where there are none."""
        if len(values_N) == 0:
            raise ValueError("The prompts have no tokens of one of the modalities: use other prompts.")
        sorted_N, order_N = values_N.double().sort()
        return cls(sorted_N, weights_N[order_N].cumsum(dim=0))

    @property
    def count(self) -> int:
        """The number of added values."""
        return int(self.ends_N[-1])

    def at(self, rank: int) -> float:
        """The value with this rank, from 0, among all added values."""
        return self.values_N[int(torch.searchsorted(self.ends_N, rank, right=True))].item()

    def below(self, value: float) -> int:
        """The number of added values below `value`."""
        kept = int(torch.searchsorted(self.values_N, value))
        return int(self.ends_N[kept - 1]) if kept else 0

    def quantile(self, share: float) -> float:
        """The value `share` of the way from the first rank to the last, interpolated between two ranks."""
        rank = share * (self.count - 1)
        low, high = int(np.floor(rank)), int(np.ceil(rank))
        ends = torch.tensor([self.at(low), self.at(high)], dtype=torch.float64)
        return torch.lerp(ends[0], ends[1], rank - low).item()

    def mean(self, of_values_N: Tensor) -> float:
        """The mean over all added values of what each value is mapped to."""
        weights_N = self.ends_N.diff(prepend=self.ends_N.new_zeros(1))
        return ((of_values_N.double() * weights_N).sum() / self.count).item()


class QuantileSketch:
    """A sketch of non-negative float32 values, in which few values represent many.

    A value at level h represents 2^h values. A level with more than `capacity` values is sorted, and every
    second value moves up a level, alternately those at odd and at even places. That changes a rank by at most
    2^h, so ranks are exact within `rank_error`: 0 up to `capacity` values, and for n values less than n ·
    levels / capacity. There are about log2(n / capacity) levels.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._levels: list[Tensor] = [torch.empty(0)]
        self._raised = [0]

    @property
    def rank_error(self) -> int:
        """The largest possible error of a value's rank among all added values."""
        return sum(times * 2**level for level, times in enumerate(self._raised))

    @property
    def count(self) -> int:
        """The number of added values."""
        return sum(len(kept_N) * 2**level for level, kept_N in enumerate(self._levels))

    def add(self, values_N: Tensor) -> None:
        """Add values, in pieces of `capacity`."""
        for piece_N in values_N.flatten().float().split(self._capacity):
            self._levels[0] = torch.cat([self._levels[0], piece_N])
            self._raise_full()

    def _raise_full(self) -> None:
        level = 0
        while len(values_N := self._levels[level]) > self._capacity:
            if level + 1 == len(self._levels):
                self._levels.append(torch.empty(0))
                self._raised.append(0)
            even = len(values_N) // 2 * 2  # an odd one stays
            sorted_N = values_N[:even].sort().values
            chosen_N = sorted_N[1 - self._raised[level] % 2 :: 2]
            self._raised[level] += 1
            self._levels[level] = values_N[even:].clone()
            level += 1
            self._levels[level] = torch.cat([self._levels[level], chosen_N])

    def ranked(self) -> Ranked:
        """The added values, in order."""
        return merged([self])

    def weighted(self) -> tuple[Tensor, Tensor]:
        """The kept values and the number of values that each represents, in no order."""
        weights = [torch.full((len(kept_N),), 2**level) for level, kept_N in enumerate(self._levels)]
        return torch.cat(self._levels), torch.cat(weights)

    def arrays(self) -> dict[str, np.ndarray]:
        """The complete state, as arrays."""
        levels = {str(level): kept_N.numpy() for level, kept_N in enumerate(self._levels)}
        return levels | {"raised": np.array(self._raised)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        """A sketch with the default capacity and the state in `arrays`."""
        sketch = cls()
        sketch._raised = arrays["raised"].tolist()
        sketch._levels = [torch.from_numpy(arrays[str(level)]) for level in range(len(sketch._raised))]
        return sketch


def merged(sketches: Sequence[QuantileSketch], factors: Sequence[float] | None = None) -> Ranked:
    """The added values of several sketches, each value times its sketch's factor."""
    parts = [sketch.weighted() for sketch in sketches]
    values = [
        values_N * factor for (values_N, _), factor in zip(parts, factors or [1.0] * len(parts), strict=True)
    ]
    return Ranked.of(torch.cat(values), torch.cat([weights_N for _, weights_N in parts]))
