"""The buffer that says which image a token belongs to."""

import pytest
import torch

from prismoe.model_plugins.moe_layer.token_segments import TokenSegments

PADDING, TEXT = -2, -1


def images(*sizes: int) -> list[torch.Tensor]:
    return [torch.zeros(size, 2) for size in sizes]


def test_a_step_is_described_token_by_token() -> None:
    segments = TokenSegments(max_tokens=10)
    is_vision_T = torch.tensor([False, True, True, False, True, True, True])
    segments.mark(is_vision_T, images(2, 3), num_tokens=7)
    assert segments.segments.tolist() == [TEXT, 0, 0, TEXT, 1, 1, 1, PADDING, PADDING, PADDING]


def test_images_side_by_side_stay_two() -> None:
    segments = TokenSegments(max_tokens=4)
    segments.mark(torch.ones(4, dtype=torch.bool), images(1, 3), num_tokens=4)
    assert segments.segments.tolist() == [0, 1, 1, 1]


def test_a_text_step_after_an_image_step() -> None:
    segments = TokenSegments(max_tokens=4)
    segments.mark(torch.ones(4, dtype=torch.bool), images(4), num_tokens=4)
    segments.mark(torch.zeros(2, dtype=torch.bool), [], num_tokens=2)
    assert segments.segments.tolist() == [TEXT, TEXT, PADDING, PADDING]


def test_before_and_after_a_step_all_is_padding() -> None:
    segments = TokenSegments(max_tokens=3)
    assert segments.segments.tolist() == [PADDING] * 3
    segments.mark(None, [], num_tokens=2)
    segments.clear()
    assert segments.segments.tolist() == [PADDING] * 3


def test_what_a_request_asks_for_stays_with_its_images() -> None:
    segments = TokenSegments(max_tokens=6)
    asked = [torch.tensor([[4.0, 1.0]]), torch.tensor([[0.0, 2.0]]).repeat(2, 1)]
    is_vision_T = torch.tensor([True, False, True, True])
    segments.mark(is_vision_T, asked, num_tokens=4)
    assert segments.asked[:4].tolist() == [[4, 1], [0, 0], [0, 2], [0, 2]]
    segments.mark(None, [], num_tokens=6)
    assert not segments.asked.any()


def test_more_tokens_than_the_buffer_holds_stop_the_step() -> None:
    with pytest.raises(AssertionError, match="more tokens"):
        TokenSegments(max_tokens=2).mark(None, images(), num_tokens=3)


def test_what_the_layers_see_of_a_step_stays_as_it_was() -> None:
    """Steps are counted later, when the buffers say something else."""
    segments = TokenSegments(max_tokens=6)
    segments.mark(torch.tensor([False, True, True]), images(2), num_tokens=3)
    step = segments.step(3)
    assert segments.step(3) is step
    segments.mark(None, [], num_tokens=3)
    assert step.segment_T.tolist() == [TEXT, 0, 0]
    assert not step.is_text
    assert segments.step(3).segment_T.tolist() == [TEXT] * 3
    assert segments.step(3).is_text
    segments.clear()
    assert segments.step(2).segment_T.tolist() == [PADDING] * 2
