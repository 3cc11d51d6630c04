"""Images are never cut."""

from hypothesis import given
from hypothesis import strategies as st

from prismoe.model_plugins.scheduler import tokens_before_cut

gaps_and_lengths = st.lists(st.tuples(st.integers(0, 9), st.integers(1, 20)), max_size=5)


def images_of(layout: list[tuple[int, int]]) -> list[tuple[int, int]]:
    images, position = [], 0
    for gap, length in layout:
        images.append((position + gap, length))
        position += gap + length
    return images


def is_cut(images: list[tuple[int, int]], position: int) -> bool:
    return any(offset < position < offset + length for offset, length in images)


@given(gaps_and_lengths, st.integers(1, 60))
def test_a_prefill_in_steps_never_cuts_an_image(layout: list[tuple[int, int]], budget: int) -> None:
    images = images_of(layout)
    total = sum(map(sum, layout)) + 5
    budget = max([budget, *(length for _, length in images)])
    start = 0
    while start < total:
        count = tokens_before_cut(images, start, min(budget, total - start))
        assert 0 < count <= budget
        start += count
        assert not is_cut(images, start)


def test_an_image_larger_than_the_budget_waits() -> None:
    assert tokens_before_cut([(0, 16)], 0, 14) == 0
    assert tokens_before_cut([(3, 16)], 0, 14) == 3
