"""Thresholds that split values into given shares."""

from prismoe.model_plugins.tools.calibrate.fits.sketch import Ranked


def between(ranked: Ranked, share: float) -> float:
    """A number above `share` of the values (rounded to whole values), halfway to the next one.

    A threshold below all values is half of the smallest; one above all is 10% above the largest. Values are 0
    or more.
    """
    below = round(share * ranked.count)
    if below == 0:
        return ranked.at(0) / 2
    if below == ranked.count:
        return ranked.at(below - 1) * 1.1
    return (ranked.at(below - 1) + ranked.at(below)) / 2
