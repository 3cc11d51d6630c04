"""Every policy compared with its float64 reference, and the effects of its settings."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils import _pytree as pytree

from prismoe.kernels.routing import router_probabilities
from prismoe.model_plugins.routing.policies.ltdr import LTDR
from prismoe.model_plugins.routing.policies.topk import TopK
from prismoe.model_plugins.routing.policy import Routing, RoutingPolicy
from prismoe.model_plugins.routing.registry import POLICIES, choose_routing
from tests.kernels import reference
from tests.kernels.test_routing import SEGMENTS
from tests.model_plugins.routing.policy_reference import RULES, Pairs, ltdr_tail
from tests.model_plugins.routing.routing_steps import (
    BY_MODALITY,
    CASES,
    HIDDEN_SIZE,
    in_float64,
    least_experts,
    make,
    random_step,
    with_request_logits,
)
from tests.paths import REPOSITORY

MIXED = SEGMENTS["two images in text"]
FILES = list((REPOSITORY / "model_plugins" / "routing" / "policies").glob("*.py"))


def used(routing: Routing) -> list[Pairs]:
    rows = zip(
        routing.experts_TA.tolist(), routing.weights_TA.tolist(), routing.count_T.tolist(), strict=True
    )
    return [list(zip(experts, weights, strict=True))[:count] for experts, weights, count in rows]


def assert_same(actual: list[Pairs], expected: list[Pairs]) -> None:
    for mine, theirs in zip(actual, expected, strict=True):
        assert [expert for expert, _ in mine] == [expert for expert, _ in theirs]
        np.testing.assert_allclose([w for _, w in mine], [w for _, w in theirs], rtol=2e-5, atol=1e-7)


def assert_well_formed(routing: Routing, policy: RoutingPolicy, num_experts: int) -> None:
    """Check the promises of `Routing` and the requirements of vLLM's kernels."""
    slots = routing.experts_TA.shape[1]
    assert slots <= policy.slots(num_experts)  # on CPU slots that no token uses are left out
    assert routing.experts_TA.shape == routing.weights_TA.shape == (len(routing.count_T), slots)
    assert routing.experts_TA.dtype == routing.count_T.dtype == torch.int64
    assert routing.weights_TA.dtype == torch.float32
    assert routing.tail_T.dtype == torch.bool
    assert 0 <= routing.experts_TA.min() <= routing.experts_TA.max() < num_experts
    assert least_experts(policy) <= routing.count_T.min() <= routing.count_T.max() <= slots
    unused_TA = torch.arange(slots) >= routing.count_T[:, None]
    assert not routing.weights_TA[unused_TA].any()
    first_TA = routing.experts_TA[:, :1].expand(-1, slots)
    assert torch.equal(routing.experts_TA[unused_TA], first_TA[unused_TA])


@pytest.mark.parametrize("num_experts", [4, 7, 16])
@pytest.mark.parametrize("segments", SEGMENTS.values(), ids=SEGMENTS.keys())
@pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())
def test_a_policy_matches_its_reference(
    settings: dict[str, Any], segments: list[int], num_experts: int
) -> None:
    policy = make(settings)
    step = random_step(policy, segments, num_experts)
    routing = policy.route(step)
    assert_well_formed(routing, policy, num_experts)
    assert_same(used(routing), RULES[policy.policy](policy, in_float64(step)))


@pytest.mark.parametrize("segments", SEGMENTS.values(), ids=SEGMENTS.keys())
@pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())
def test_a_policy_reports_the_scores_that_chose_its_experts(
    settings: dict[str, Any], segments: list[int]
) -> None:
    """No unused expert scores more than a used one. The last experts are shared, and have no score."""
    policy = make(settings)
    routing = policy.route(random_step(policy, segments, 7))
    assert (routing.confidence is None) == (policy.policy in ("gmm", "top_any"))
    if routing.confidence is None:
        return
    np.testing.assert_allclose(routing.confidence.probs_TE.sum(dim=1), 1, rtol=1e-5)
    scores_TE = routing.confidence.scores_TE
    if scores_TE is None:
        scores_TE = routing.confidence.probs_TE
    for scores_E, pairs in zip(scores_TE, used(routing), strict=True):
        chosen = {expert for expert, _ in pairs} & set(range(len(scores_E)))
        others = set(range(len(scores_E))) - chosen
        assert len(pairs) - len(chosen) == 7 - len(scores_E)
        assert not (chosen and others) or max(scores_E[list(others)]) <= min(scores_E[list(chosen)])


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())
def test_a_policy_knows_whether_it_leaves_slots_unused(settings: dict[str, Any]) -> None:
    policy = make(settings)
    steps = [random_step(policy, MIXED * 4, num_experts) for num_experts in (4, 7)]
    assert policy.uses_all_slots == all(
        (policy.route(step).count_T == policy.slots(step.num_experts)).all() for step in steps
    )


def test_an_expert_has_to_exceed_its_threshold() -> None:
    """A token that is exactly as similar as the threshold does not use the expert (DynMoE, Eqs. 2 to 6)."""
    policy = make({"policy": "top_any"})
    own = {"expert_embeddings": torch.eye(HIDDEN_SIZE), "thresholds": torch.zeros(HIDDEN_SIZE)}
    step = random_step(policy, [-1] * HIDDEN_SIZE, HIDDEN_SIZE)
    step = step._replace(hidden_TD=torch.eye(HIDDEN_SIZE), parameters=own)
    routing = policy.route(step)
    assert routing.count_T.tolist() == [1] * HIDDEN_SIZE
    assert_same(used(routing), RULES["top_any"](policy, in_float64(step)))


@pytest.mark.parametrize(
    ("place", "there"),
    [
        ("model_plugins/routing/policies, as NAME.py,", {file.stem for file in FILES} - {"__init__"}),
        ("RULES of tests/model_plugins/routing/policy_reference.py", set(RULES)),
        (
            "CASES of tests/model_plugins/routing/routing_steps.py",
            {settings["policy"] for settings in CASES.values()},
        ),
    ],
)
def test_every_policy_is_registered(place: str, there: set[str]) -> None:
    lacks, unknown = sorted(set(POLICIES) - there), sorted(there - set(POLICIES))
    assert not lacks, f"{place} lacks {', '.join(lacks)}."
    assert not unknown, f"{place} has {', '.join(unknown)}, which POLICIES of registry.py lacks."


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())
def test_equal_scores_choose_the_lower_experts(settings: dict[str, Any]) -> None:
    policy = make(settings)
    step = random_step(policy, [-1, 0, 0], 4)
    step = step._replace(
        logits_TE=torch.zeros_like(step.logits_TE),
        parameters={name: torch.ones_like(value) for name, value in step.parameters.items()},
    )
    step = with_request_logits(policy, step)
    assert_same(used(policy.route(step)), RULES[policy.policy](policy, in_float64(step)))


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())
def test_a_token_is_routed_independently(settings: dict[str, Any]) -> None:
    """Text next to an image, and adjacent images, have no effect on each other.

    If a mean is over a request, its images are routed together.
    """
    policy = make(settings)
    images = [[1, 2, 3, 4, 6, 7, 8]] if policy.needs_whole_requests else [[1, 2, 3, 4], [6, 7, 8]]
    segments = [-1, 0, 0, 0, 0, -1, 1, 1, 1]
    together = random_step(policy, segments, 7)
    all_pairs = used(policy.route(together))
    for rows in ([0], [5], *images):
        segment_T = together.segment_T[rows]
        alone = together._replace(
            hidden_TD=together.hidden_TD[rows],
            logits_TE=together.logits_TE[rows],
            segment_T=segment_T - segment_T.min().clamp(min=0),
            asked_T2=together.asked_T2[rows],
            is_text=bool(segment_T.max() < 0),
            request_T=torch.zeros_like(segment_T),
        )
        assert_same(used(policy.route(alone)), [all_pairs[row] for row in rows])


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())
def test_a_policy_never_reads_data_on_the_host(settings: dict[str, Any]) -> None:
    """On tensors without data, reading a value or a shape that depends on one raises. CPU may read."""
    policy = make(settings)
    step = random_step(policy, [-1, 0, 0, 1, -2], 7)
    empty = pytree.tree_map_only(torch.Tensor, lambda real: real.to("meta"), step)
    assert policy.route(empty).experts_TA.shape == (5, policy.slots(7))


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())
def test_a_policy_survives_a_json_round_trip(settings: dict[str, Any]) -> None:
    policy = make(settings)
    assert type(policy).model_validate_json(policy.model_dump_json()) == policy


VISION_SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("ltdr", {"tail_experts": 3}),
    ("ltdr", {"head_experts": 1}),
    ("ltdr", {"selection": "head"}),
    ("ltdr", {"threshold": 0.001}),
    ("groups", {"vision_experts": 2}),
    ("two thresholds", {"vision_threshold": 0.0}),
    ("two thresholds", {"vision_importance": 0.5}),
    ("two thresholds, all skipped", {"keep_best": False}),
    ("steer", {"vision": {"on": [3]}}),
    ("steer", {"vision": {"on": [2], "off": [0]}}),
    ("steer of probabilities", {"vision": {"on": [1, 3], "shift": {"0": -9}}}),
]
"""Changes that only affect vision."""

SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("topk", {"top_k": 1}),
    ("topk", {"norm_topk_prob": False}),
    ("equiroute", {"reserved_slots": 1}),
    ("groups", {"vision_group": 4}),
    ("groups", {"shared_experts": 1}),
    ("bias", {"score": "sigmoid"}),
    ("fine experts", {"shared_experts": 2}),
    ("entropy", {"min_experts": 3}),
    ("entropy", {"max_experts": 2}),
    ("entropy", {"low": 0.7}),
    ("entropy", {"high": 0.5}),
    ("steer", {"all": {}}),
    ("steer to nowhere", {"all": {"on": [3]}}),
    ("task", {"top_k": 1}),
    ("task", {"default_task": 1}),
    ("task", {"tasks": 1}),
    ("task by label", {"experts": [0, 2, 3]}),
    ("cluster", {"norm_topk_prob": False}),
    ("instruction", {"top_k": 1}),
]
"""Changes that affect both modalities."""


def with_settings(case: str, change: dict[str, Any]) -> tuple[list[Pairs], list[Pairs]]:
    before, after = make(CASES[case]), make(CASES[case] | change)
    step = random_step(before, MIXED, 7)
    fewer_rows = step.logits_TE[:, : after.gate_rows(7)]
    changed = with_request_logits(after, step._replace(logits_TE=fewer_rows))
    return used(before.route(step)), used(after.route(changed))


def vision(pairs: list[Pairs]) -> list[Pairs]:
    return [token for token, segment in zip(pairs, MIXED, strict=True) if segment >= 0]


def text(pairs: list[Pairs]) -> list[Pairs]:
    return [token for token, segment in zip(pairs, MIXED, strict=True) if segment < 0]


@pytest.mark.parametrize(("case", "change"), VISION_SETTINGS)
def test_a_vision_setting_changes_vision_and_leaves_text_alone(case: str, change: dict[str, Any]) -> None:
    before, after = with_settings(case, change)
    assert vision(before) != vision(after)
    assert text(before) == text(after)


@pytest.mark.parametrize(("case", "change"), SETTINGS)
def test_a_setting_changes_vision(case: str, change: dict[str, Any]) -> None:
    before, after = with_settings(case, change)
    assert vision(before) != vision(after)


def test_a_text_setting_leaves_vision_alone() -> None:
    for case, change in (
        ("ltdr", {"text_experts": 1}),
        ("two thresholds", {"text_threshold": 0.9}),
        ("steer", {"text": {"off": [2]}}),
    ):
        before, after = with_settings(case, change)
        assert vision(before) == vision(after)
        assert text(before) != text(after)


PARAMETERS = [
    (case, name) for case, settings in CASES.items() for name in make(settings).parameters(HIDDEN_SIZE, 7)
]


@pytest.mark.parametrize(("case", "name"), PARAMETERS)
def test_a_parameter_changes_vision_and_visions_own_row_leaves_text_alone(case: str, name: str) -> None:
    policy = make(CASES[case])
    step = random_step(policy, MIXED, 7)
    other = random_step(policy, MIXED, 7, seed=1).parameters[name].clone()
    if name in BY_MODALITY:
        other[0] = step.parameters[name][0]
    before = used(policy.route(step))
    changed = with_request_logits(policy, step._replace(parameters={**step.parameters, name: other}))
    after = used(policy.route(changed))
    assert vision(before) != vision(after)
    if name in BY_MODALITY:
        assert text(before) == text(after)


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("ltdr")])
@pytest.mark.parametrize("asked", [(3, 1), (0, 1), (4, 0), (100, 100)])
def test_a_request_sets_numbers_of_experts(case: str, asked: tuple[int, int]) -> None:
    policy = make(CASES[case])
    assert isinstance(policy, LTDR)
    step = random_step(policy, SEGMENTS["two images in text"], 4)
    step.asked_T2[1:4] = torch.tensor(asked)  # only the first image's request sets them
    routing = policy.route(step)
    assert_well_formed(routing, policy, 4)
    assert_same(used(routing), RULES["ltdr"](policy, in_float64(step)))


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("ltdr")])
def test_ltdr_reports_its_tail_tokens(case: str) -> None:
    policy = make(CASES[case])
    step = random_step(policy, SEGMENTS["images side by side, then padding"], 7)
    assert policy.route(step).tail_T.tolist() == ltdr_tail(policy, in_float64(step))


def test_only_a_mean_over_an_image_or_a_request_needs_it_whole() -> None:
    needy = {case for case, settings in CASES.items() if make(settings).needs_whole_images}
    assert needy == {case for case in CASES if case.startswith("ltdr") and "threshold" not in case}
    needy = {case for case, settings in CASES.items() if make(settings).needs_whole_requests}
    assert needy == {case for case in CASES if "over the request" in case}


def test_the_mean_of_a_request_is_over_exactly_its_images() -> None:
    """RPV rises with the first logit: the image with the lower RPV has no tail token."""
    of_image, of_request = make(CASES["ltdr"]), make(CASES["ltdr over the request"])
    step = random_step(of_request, [0, 0, -1, 1, 1, 2, 2], 4)
    step = step._replace(logits_TE=torch.tensor([1.0, 2, 9, 3, 4, 1, 2])[:, None] * torch.eye(4)[0])
    assert step.request_T is not None
    assert step.request_T.tolist() == [0, 0, 0, 0, 0, 1, 1]
    assert of_request.route(step).tail_T.tolist() == [False, False, False, True, True, False, True]
    assert of_image.route(step).tail_T.tolist() == [False, True, False, False, True, False, True]
    without = step._replace(request_T=None)  # each has one image
    assert of_request.route(without).tail_T.tolist() == of_image.route(step).tail_T.tolist()


@pytest.mark.parametrize(
    ("steering", "message"),
    [
        ({"all": {"on": [1]}, "text": {"off": [1]}}, "all and text name expert 1 more than once"),
        ({"vision": {"on": [2], "shift": {"2": 1}}}, "all and vision name expert 2 more than once"),
        ({"vision": {"on": [7]}}, "steer names expert 7: there are 0 to 6."),
        ({"all": {"on": [0, 1]}, "vision": {"on": [2]}}, "steer has 3 experts on, and a token uses 2"),
        ({"text": {"off": [0, 1, 2, 3, 4, 5]}}, "steer has 6 of 7 experts off, and a token uses 2"),
        ({"text": {"on": [-1]}}, "Input should be greater than or equal to 0"),
        ({"image": {"on": [1]}}, "image: Extra inputs are not permitted."),
    ],
)
def test_impossible_steering_is_refused(steering: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_routing({"policy": "steer", **steering}, None, 2, {0: 7})


def test_text_is_routed_the_same_by_ltdr_and_topk() -> None:
    topk, ltdr = TopK(top_k=2, norm_topk_prob=True), LTDR(top_k=2, norm_topk_prob=True)
    step = random_step(topk, [reference.TEXT] * 11, 4)
    topk_routing, ltdr_routing = topk.route(step), ltdr.route(step)
    assert torch.equal(ltdr_routing.experts_TA[:, :2], topk_routing.experts_TA)
    assert torch.equal(ltdr_routing.weights_TA[:, :2], topk_routing.weights_TA)
    assert not ltdr_routing.weights_TA[:, 2:].any()


def test_two_mixtures_can_choose_the_same_expert() -> None:
    policy = make({"policy": "gmm", "top_k": 2, "latent": 4, "components": 2})
    step = random_step(policy, [-1, 0], 4)
    own = {
        name: value if name.startswith("encoder") else value[:1].expand_as(value)
        for name, value in step.parameters.items()
    }
    for pairs in used(policy.route(step._replace(parameters=own))):
        assert pairs == [(pairs[0][0], 0.5)] * 2


def test_an_expert_chosen_only_by_its_bias_has_a_weight() -> None:
    """Its probability can round to 0, which must not be a divisor."""
    policy = make({"policy": "bias_corrected", "top_k": 1, "norm_topk_prob": True})
    step = random_step(policy, [0], 4)._replace(logits_TE=torch.tensor([[0.0, 200.0, 0.0, 0.0]]))
    step = step._replace(parameters={"expert_bias": torch.tensor([0.0, 0.0, 0.0, 9.0])})
    assert router_probabilities(step.logits_TE)[0, 3] == 0
    assert used(policy.route(step)) == [[(3, 1.0)]]
