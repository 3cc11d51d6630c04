"""Thresholds that part values in given shares."""

from torch import Tensor


def between(values_N: Tensor, share: float) -> float:
    """A number above `share` of the values (rounded to whole values), halfway to the next one.

    Below all values it is half of the least, above all a tenth over the largest: values are 0 or more.
    """
    return between_sorted(values_N.double().sort().values, share)


def between_sorted(sorted_N: Tensor, share: float) -> float:
    """The same, of values that rise, in float64."""
    below = round(share * len(sorted_N))
    if below == 0:
        return sorted_N[0].item() / 2
    if below == len(sorted_N):
        return sorted_N[-1].item() * 1.1
    return (sorted_N[below - 1] + sorted_N[below]).item() / 2
