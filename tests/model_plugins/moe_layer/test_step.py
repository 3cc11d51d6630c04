"""The running step: the properties of its tokens, and the records of the layers about them."""

import pytest
import torch
from torch import Tensor

from prismoe.kernels.expert_load import Confidence, LayerShape
from prismoe.model_plugins.moe_layer import step as step_module
from prismoe.model_plugins.moe_layer.load_counter import PAGE_TOKENS, LoadCounter
from prismoe.model_plugins.moe_layer.step import Media, RoutingStep

PADDING, TEXT = -2, -1
LAYER = LayerShape(experts=4, slots=2, scored=4)


def routing_step(max_tokens: int) -> RoutingStep:
    return RoutingStep(("text", "image", "video", "audio"), [LAYER], max_tokens)


def images(*sizes: int) -> list[Media]:
    return [Media("image", size) for size in sizes]


def test_a_step_is_described_token_by_token() -> None:
    step = routing_step(10)
    is_media_T = torch.tensor([False, True, True, False, True, True, True])
    step.tokens.mark(is_media_T, [Media("video", 2), Media("image", 3)], num_tokens=7)
    assert step.tokens.segments.tolist() == [TEXT, 0, 0, TEXT, 1, 1, 1, PADDING, PADDING, PADDING]
    assert step.tokens.modalities.tolist() == [0, 2, 2, 0, 1, 1, 1, -1, -1, -1]


def test_adjacent_images_are_separate() -> None:
    step = routing_step(4)
    step.tokens.mark(torch.ones(4, dtype=torch.bool), images(1, 3), num_tokens=4)
    assert step.tokens.segments.tolist() == [0, 1, 1, 1]


def test_sound_has_a_modality_and_is_text_for_policies() -> None:
    step = routing_step(4)
    is_media_T = torch.tensor([True, True, False, True])
    step.tokens.mark(is_media_T, [Media("audio", 2), Media("image", 1)], num_tokens=4)
    assert step.tokens.segments.tolist() == [TEXT, TEXT, TEXT, 1]
    assert step.tokens.modalities.tolist() == [3, 3, 0, 1]


def test_a_text_step_after_an_image_step() -> None:
    step = routing_step(4)
    step.tokens.mark(torch.ones(4, dtype=torch.bool), images(4), num_tokens=4)
    step.tokens.mark(torch.zeros(2, dtype=torch.bool), [], num_tokens=2)
    assert step.tokens.segments.tolist() == [TEXT, TEXT, PADDING, PADDING]
    assert step.tokens.modalities.tolist() == [0, 0, -1, -1]


def test_before_and_after_a_step_everything_is_padding() -> None:
    step = routing_step(3)
    assert step.tokens.segments.tolist() == [PADDING] * 3
    step.tokens.mark(None, [], num_tokens=2)
    step.tokens.clear()
    assert step.tokens.segments.tolist() == [PADDING] * 3
    assert step.tokens.modalities.tolist() == [-1] * 3
    assert step.tokens.num_tokens == 0


def test_a_requests_settings_stay_with_its_images() -> None:
    step = routing_step(6)
    asked = [torch.tensor([[4.0, 1.0]]), torch.tensor([[0.0, 2.0]]).repeat(2, 1)]
    media = [Media("image", len(asked_T2), asked_T2) for asked_T2 in asked]
    step.tokens.mark(torch.tensor([True, False, True, True]), media, num_tokens=4)
    assert step.tokens.asked[:4].tolist() == [[4, 1], [0, 0], [0, 2], [0, 2]]
    step.tokens.mark(None, [], num_tokens=6)
    assert not step.tokens.asked.any()


def test_too_many_tokens_stop_the_step() -> None:
    with pytest.raises(AssertionError, match="more tokens"):
        routing_step(2).tokens.mark(None, [], num_tokens=3)


def test_only_a_step_without_images_is_marked_as_text() -> None:
    step = routing_step(6)
    step.tokens.mark(torch.tensor([False, True, True]), images(2), num_tokens=3)
    assert not step.tokens.seen(3).is_text
    step.tokens.mark(None, [], num_tokens=3)
    assert step.tokens.seen(3).is_text
    assert not step.tokens.seen(4).is_text  # padded
    step.tokens.clear()
    assert not step.tokens.seen(3).is_text


def run(step: RoutingStep, experts_TA: Tensor, logits_TE: Tensor) -> None:
    step.write(0, experts_TA, torch.ones(len(experts_TA), 2), None, None, Confidence(logits_TE))


def test_evenly_spaced_tokens_of_a_large_step_are_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_module, "MOST_SCORED", 12)  # of 4 experts in one layer: 3 tokens
    step = routing_step(10)
    counter = LoadCounter(step)
    is_media_T = torch.tensor([False] * 4 + [True] * 4)
    step.tokens.mark(is_media_T, images(4), num_tokens=8)
    sure, unsure = torch.tensor([9.0, 0, 0, 0]), torch.zeros(4)
    asked = (0, 2, 5)
    logits_TE = torch.stack([unsure if token in asked else sure for token in range(8)])
    run(step, torch.tensor([[0, 1]]).repeat(8, 1), logits_TE)
    counter.add(step)
    step.tokens.clear()
    step.tokens.mark(None, [], num_tokens=2)  # a small step after it: all of its tokens
    run(step, torch.tensor([[2, 3]]).repeat(2, 1), torch.stack([unsure, unsure]))
    counter.add(step)
    load = counter.load()
    assert load["tokens"] == [[6, 4, 0, 0]]
    assert load["scored_tokens"] == [[4, 1, 0, 0]]
    assert load["near_ties"] == [[4, 1, 0, 0]]
    assert load["expert_tokens"] == [[[4, 4, 2, 2], [4, 4, 0, 0], [0] * 4, [0] * 4]]


def test_many_steps_are_counted_like_single_ones() -> None:
    """They fill more than a page, and are read in between."""
    step = routing_step(400)
    counter, total, read = LoadCounter(step), 0, 0
    for size in [1, 400, 400, 300, 7, 400, PAGE_TOKENS % 400]:
        step.tokens.mark(None, [], num_tokens=size)
        run(step, torch.tensor([[1, 3]]).repeat(size, 1), torch.zeros(size, 4))
        counter.add(step)
        step.tokens.clear()
        total += size
        if size == 7:
            read = counter.load()["tokens"][0][0]
    assert read == 1108
    load = counter.load()
    assert load["tokens"] == [[total, 0, 0, 0]] == load["scored_tokens"]
    assert load["expert_tokens"][0][0] == [0, total, 0, total]
    step.tokens.mark(None, [], num_tokens=3)
    run(step, torch.tensor([[1, 3]]).repeat(3, 1), torch.zeros(3, 4))
    counter.add(step)
    counter.reset()
    load = counter.load()
    assert load["tokens"] == [[0, 0, 0, 0]] == load["scored_tokens"]


@pytest.mark.parametrize("own", [(), ("uses_all_slots",), ("has_tails", "has_scores")], ids=str)
def test_constant_parts_are_counted_as_if_they_could_change(own: tuple[str, ...]) -> None:
    """The layers have 1 and 2 experts for each token."""
    layers = [
        LayerShape(experts=4, slots=slots, scored=4)._replace(**dict.fromkeys(own, True)) for slots in (1, 2)
    ]
    step = RoutingStep(("text", "image"), layers, max_tokens=5)
    counter = LoadCounter(step)
    for size in (3, 5):
        step.tokens.mark(None, [], num_tokens=size)
        step.write(
            0, torch.tensor([[3]] * size), torch.ones(size, 1), None, None, Confidence(torch.zeros(size, 4))
        )
        step.write(
            1,
            torch.tensor([[0, 2]] * size),
            torch.ones(size, 2),
            None,
            None,
            Confidence(torch.zeros(size, 4)),
        )
        counter.add(step)
        step.tokens.clear()
    load = counter.load()
    assert load["tokens"] == [[8, 0]] * 2 == load["scored_tokens"]
    assert [rows[0] for rows in load["expert_tokens"]] == [[0, 0, 0, 8], [8, 0, 8, 0]]
    assert [rows[0] for rows in load["tokens_by_experts"]] == [[0, 8], [0, 0, 8]]
    assert load["tail_tokens"] == [0, 0]


def test_variable_parts_are_counted_token_by_token() -> None:
    """These are the number of experts, tail tokens, and scores with another ranking than the logits."""
    layer = LayerShape(experts=4, slots=2, scored=4, has_tails=True, has_scores=True)
    step = RoutingStep(("text", "image"), [layer], max_tokens=4)
    counter = LoadCounter(step)
    for is_first in (True, False):
        step.tokens.mark(torch.ones(2, dtype=torch.bool), images(2), num_tokens=2)
        count_T = torch.tensor([1, 2] if is_first else [2, 2])
        scores_TE = torch.tensor([[4.0, 3.0, 2.0, 1.0]] * 2 if is_first else [[1.0, 1.0, 1.0, 1.0]] * 2)
        confidence = Confidence(torch.zeros(2, 4), scores_TE)
        step.write(0, torch.tensor([[0, 1]] * 2), torch.ones(2, 2), count_T, count_T == 2, confidence)
        counter.add(step)
        step.tokens.clear()
    load = counter.load()
    assert load["expert_tokens"] == [[[0] * 4, [4, 3, 0, 0]]]
    assert load["tokens_by_experts"] == [[[0, 0, 0], [0, 1, 3]]]
    assert load["tail_tokens"] == [3]
    assert load["near_ties"] == [[0, 2]]
