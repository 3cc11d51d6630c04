"""Fitted thresholds reach their goals when the policy itself applies them."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prismoe.kernels.routing import router_probabilities, tail_tokens
from prismoe.model_plugins.tools.calibrate.fits import dual_threshold, entropy, ltdr
from prismoe.model_plugins.tools.calibrate.fits.fit import Goal, RouterFit, fitter
from prismoe.model_plugins.tools.calibrate.fits.quantile import between
from prismoe.model_plugins.tools.calibrate.fits.sketch import Ranked
from tests.model_plugins.tools.calibrate.fits.recordings import (
    EXPERTS,
    IMAGE_TOKENS,
    IMAGES,
    calibration_data,
    routed,
    samples,
)

VISION_TOKENS = IMAGES * IMAGE_TOKENS
DIVERGENCE = {0: {"text": 3.0, "vision": 0.2}, 2: {"text": 1.0, "vision": 0.8}}


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, unique=True), st.floats(0, 1))
def test_between_divides_values_by_the_share(values: list[float], share: float) -> None:
    distinct = torch.tensor(values, dtype=torch.float64)
    threshold = between(Ranked.of(distinct, torch.ones(len(distinct), dtype=torch.int64)), share)
    assert int((distinct < threshold).sum()) == round(share * len(values))


@pytest.mark.parametrize("share", [0.1, 0.25, 0.9])
def test_ltdr_thresholds_give_the_share_of_tail_tokens(share: float) -> None:
    data = calibration_data(samples(), "variance")
    fitted = ltdr.fit(data, Goal({"head_experts": 1}, tail_share=share))
    for routing in routed(data, fitted).values():
        assert int(routing.tail_T.sum()) == round(share * VISION_TOKENS)
    assert fitted.routing()["layers"].keys() == {"0", "2"}


def test_ltdr_keeps_the_number_of_tail_tokens_by_default() -> None:
    data = calibration_data(samples(), "variance")
    for layer, routing in routed(data, ltdr.fit(data, Goal())).items():
        sample = data.samples()[layer]
        by_mean = tail_tokens(router_probabilities(sample.logits_NE), sample.segment_N)
        assert int(routing.tail_T.sum()) == int(by_mean.sum())
        assert not torch.equal(routing.tail_T, by_mean)


@pytest.mark.parametrize(("top_k", "skip"), [(2, 0.5), (2, 0.2), (4, 0.5), (4, 0.75), (3, 0.1)])
def test_dual_threshold_skips_exactly_the_share_of_vision_uses(top_k: int, skip: float) -> None:
    data = calibration_data(samples(), "weights", DIVERGENCE, top_k)
    routings = routed(data, dual_threshold.fit(data, Goal({"top_k": top_k}, skip=skip))).values()
    is_vision_T = data.samples()[0].segment_N >= 0
    kept = sum(int(routing.count_T[is_vision_T].sum()) for routing in routings)
    uses = 2 * VISION_TOKENS * top_k
    assert kept == uses - round(skip * uses)
    assert all(torch.all(routing.count_T[~is_vision_T] == top_k) for routing in routings)


@pytest.mark.parametrize("skip", [0.2, 0.88, 1.0])
def test_dual_threshold_skips_any_share_if_no_expert_is_kept(skip: float) -> None:
    data = calibration_data(samples(), "weights", DIVERGENCE, kept=0)
    routings = routed(data, dual_threshold.fit(data, Goal({"keep_best": False}, skip=skip))).values()
    is_vision_T = data.samples()[0].segment_N >= 0
    kept = sum(int(routing.count_T[is_vision_T].sum()) for routing in routings)
    uses = 2 * VISION_TOKENS * 2
    assert kept == uses - round(skip * uses)
    assert all(torch.all(routing.count_T[~is_vision_T] == 2) for routing in routings)


def test_dual_threshold_skips_text_by_its_own_share_and_most_in_unimportant_layers() -> None:
    data = calibration_data(samples(), "weights", DIVERGENCE)
    first, second = routed(data, dual_threshold.fit(data, Goal(skip=0.25, skip_text=0.25))).values()
    is_text_T = data.samples()[0].segment_N < 0
    text = int(is_text_T.sum())
    assert int(first.count_T[is_text_T].sum() + second.count_T[is_text_T].sum()) == 4 * text - text
    assert first.count_T[is_text_T].sum() > second.count_T[is_text_T].sum()
    assert first.count_T[~is_text_T].sum() < second.count_T[~is_text_T].sum()


@pytest.mark.parametrize(("share", "keep_best"), [(0.1, True), (0.3, True), (0.5, True), (0.88, False)])
@pytest.mark.parametrize("dear", ["text", "vision"])
def test_the_search_skips_the_share_of_all_uses_with_the_least_change_of_the_output(
    share: float, keep_best: bool, dear: str
) -> None:
    """If only text's uses matter, as many as possible are vision's, and the other way round."""
    skips: list[tuple[int, int]] = []

    def divergences(routings: Sequence[Mapping[str, Any]]) -> list[float]:
        for routing in routings:
            kept = routed(data, RouterFit({**routing})).values()
            skips.append(
                (
                    sum(2 * text_tokens - int(one.count_T[~is_vision_T].sum()) for one in kept),
                    sum(2 * VISION_TOKENS - int(one.count_T[is_vision_T].sum()) for one in kept),
                )
            )
        return [skip[dear == "vision"] for skip in skips]

    data = calibration_data(samples(), "weights", DIVERGENCE, kept=int(keep_best), divergences=divergences)
    is_vision_T = data.samples()[0].segment_N >= 0
    text_tokens = int((~is_vision_T).sum())
    goal = Goal({"keep_best": keep_best}, skip_overall=share)
    counts = [one.count_T for one in routed(data, dual_threshold.fit(data, goal)).values()]
    text, vision = (
        sum(int((2 - count_T)[of_T].sum()) for count_T in counts) for of_T in (~is_vision_T, is_vision_T)
    )
    expected = round(share * 4 * len(is_vision_T))
    step = 4 * VISION_TOKENS / dual_threshold.VISION_STEPS + 1
    assert expected <= text + vision <= expected + step + 4 * text_tokens / dual_threshold.TEXT_STEPS
    assert (text, vision) == min(skips, key=lambda skip: skip[dear == "vision"])
    room = (4 - 2 * keep_best) * (text_tokens if dear == "vision" else VISION_TOKENS)
    if dear == "text":
        step += 4 * text_tokens / dual_threshold.TEXT_STEPS
    assert (vision if dear == "vision" else text) <= max(0, expected - room) + step
    assert len(skips) <= dual_threshold.TEXT_STEPS + 1


def test_an_unimportant_layer_skips_everything_that_it_can() -> None:
    divergence = {0: {"text": 1.0, "vision": 1.0}, 2: {"text": 1.0, "vision": 0.0}}
    data = calibration_data(samples(), "weights", divergence)
    first, last = routed(data, dual_threshold.fit(data, Goal(skip=0.1))).values()
    is_vision_T = data.samples()[0].segment_N >= 0
    assert (first.count_T == 2).all() and (last.count_T[~is_vision_T] == 2).all()
    assert (last.count_T[is_vision_T] == 1).all()


def test_importances_are_shares_of_the_divergence() -> None:
    layers = dual_threshold.fit(calibration_data(samples(), "weights", DIVERGENCE), Goal(skip=0.5)).layers
    assert layers[0] == pytest.approx({"text_importance": 0.75, "vision_importance": 0.2})
    assert layers[2] == pytest.approx({"text_importance": 0.25, "vision_importance": 0.8})
    nothing = {layer: dict.fromkeys(("text", "vision"), 0.0) for layer in DIVERGENCE}
    even = dual_threshold.fit(calibration_data(samples(), "weights", nothing), Goal(skip=0.5)).layers
    assert even[0] == {"text_importance": 0.5, "vision_importance": 0.5}


def test_the_best_expert_cannot_be_skipped() -> None:
    for goal in (Goal(skip=0.6), Goal(skip_overall=0.51), Goal(skip=0.1, skip_text=0.7)):
        with pytest.raises(ValueError, match=r"at most 50% of 2 uses"):
            dual_threshold.fit(calibration_data(samples(), "weights", DIVERGENCE), goal)


@pytest.mark.parametrize("mean", [1.2, 2.0, 2.5, 3.9])
def test_entropy_bounds_give_the_mean_number_of_experts(mean: float) -> None:
    data = calibration_data(samples(), "entropy")
    for routing in routed(data, entropy.fit(data, Goal(mean_experts=mean))).values():
        assert routing.count_T.double().mean().item() == pytest.approx(mean, abs=0.01)


def test_entropy_bounds_within_other_numbers_of_experts() -> None:
    data = calibration_data(samples(), "entropy")
    settings = {"min_experts": 2, "max_experts": 3}
    for routing in routed(data, entropy.fit(data, Goal(settings, mean_experts=2.25))).values():
        assert set(routing.count_T.tolist()) == {2, 3}
        assert routing.count_T.double().mean().item() == pytest.approx(2.25, abs=0.01)
    with pytest.raises(ValueError, match="give another --mean-experts"):
        entropy.fit(data, Goal(settings))


def test_entropy_bounds_of_gates_that_treat_all_tokens_alike() -> None:
    layers = samples()
    for sample in layers.values():
        sample.logits_NE[:] = torch.arange(EXPERTS)
    data = calibration_data(layers, "entropy")
    for routing in routed(data, entropy.fit(data, Goal())).values():
        assert len(set(routing.count_T.tolist())) == 1


def test_unsupported_fits_and_fitted_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="nothing to calibrate for topk: give one of ltdr"):
        fitter("topk", {})
    with pytest.raises(ValueError, match="decides layers, threshold by layer"):
        fitter("ltdr", {"threshold": 0.1, "layers": {}})
