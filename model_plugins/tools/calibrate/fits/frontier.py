"""MoDES's search among pairs of thresholds, by monotonicity (arXiv 2511.15690, the frontier search)."""

from collections.abc import Callable

Pair = tuple[int, int]
"""Places in the grid of text's thresholds and in that of vision's, both rising."""


def frontier(
    text_places: int, vision_places: int, skipped: Callable[[int, int], float], wanted: float
) -> list[Pair]:
    """For each place in text's grid the least in vision's where `skipped` is `wanted` or more.

    As the authors' code walks it (github.com/ModelTC/MoDES, `minimize_g_subject_to_f` of
    grid_search_tau_ddp.py): `skipped` rises with both thresholds, so the least vision place falls as the text
    place rises, and one walk asks for at most `text_places + vision_places` pairs instead of their product.
    A text place is left out where none of vision's will do, and where the one below it needs the same in
    vision: the lower will do.

    What diverges more the more is skipped is least on this frontier: any other pair that skips enough is at
    least as high in both thresholds as one of these.
    """
    pairs: list[Pair] = []
    least = vision_places
    for text in range(text_places):
        before = least
        while least > 0 and skipped(text, least - 1) >= wanted:
            least -= 1
        if least < before:
            pairs.append((text, least))
    return pairs
