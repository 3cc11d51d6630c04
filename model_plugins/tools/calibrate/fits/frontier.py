"""MoDES's frontier search for pairs of thresholds, which uses monotonicity (arXiv 2511.15690)."""

from collections.abc import Callable

Pair = tuple[int, int]
"""Places in the grids of text's and of vision's thresholds, both rising."""


def frontier(
    text_places: int, vision_places: int, skipped: Callable[[int, int], float], target: float
) -> list[Pair]:
    """The least place in vision's grid, for each in text's grid, where `skipped` is at least `target`.

    This follows the authors' code (github.com/ModelTC/MoDES, `minimize_g_subject_to_f` of
    grid_search_tau_ddp.py): `skipped` rises with both thresholds, so the least vision place falls as the text
    place rises, and one walk checks at most `text_places + vision_places` pairs instead of their product. A
    text place is left out where no vision place is enough, and where the previous text place needs the same
    vision place.

    If divergence grows with what is skipped, its least value is on this frontier: any other pair that skips
    enough is at least as high in both thresholds as one of these.
    """
    pairs: list[Pair] = []
    least = vision_places
    for text in range(text_places):
        before = least
        while least > 0 and skipped(text, least - 1) >= target:
            least -= 1
        if least < before:
            pairs.append((text, least))
    return pairs
