"""The buffer that says which image a token belongs to."""

import torch

from prismoe.model_plugins.token_segments import TokenSegments

PADDING, TEXT = -2, -1


def test_a_step_is_described_token_by_token() -> None:
    segments = TokenSegments(max_tokens=10)
    is_vision_T = torch.tensor([False, True, True, False, True, True, True])
    segments.mark(is_vision_T, [2, 3], num_tokens=7)
    assert segments.segments.tolist() == [TEXT, 0, 0, TEXT, 1, 1, 1, PADDING, PADDING, PADDING]


def test_images_side_by_side_stay_two() -> None:
    segments = TokenSegments(max_tokens=4)
    segments.mark(torch.ones(4, dtype=torch.bool), [1, 3], num_tokens=4)
    assert segments.segments.tolist() == [0, 1, 1, 1]


def test_a_text_step_after_an_image_step() -> None:
    segments = TokenSegments(max_tokens=4)
    segments.mark(torch.ones(4, dtype=torch.bool), [4], num_tokens=4)
    segments.mark(torch.zeros(2, dtype=torch.bool), [], num_tokens=2)
    assert segments.segments.tolist() == [TEXT, TEXT, PADDING, PADDING]


def test_before_and_after_a_step_all_is_padding() -> None:
    segments = TokenSegments(max_tokens=3)
    assert segments.segments.tolist() == [PADDING] * 3
    segments.mark(None, [], num_tokens=2)
    segments.clear()
    assert segments.segments.tolist() == [PADDING] * 3
