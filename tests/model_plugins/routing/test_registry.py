"""The choice of the policies in force, and the settings that are refused."""

import re
from importlib.metadata import EntryPoint
from typing import Any, Literal

import pytest

from prismoe.model_plugins.routing.policies.ltdr import LTDR
from prismoe.model_plugins.routing.policies.topk import TopK
from prismoe.model_plugins.routing.registry import ENTRY_POINTS, POLICIES, choose_routing, installed_policies

LAYERS = {0: 4, 2: 4}


def test_the_operator_overrides_the_checkpoint_and_that_overrides_topk() -> None:
    operator, checkpoint = {"policy": "topk", "top_k": 1}, {"policy": "ltdr", "tail_experts": 3}
    chosen = choose_routing(operator, checkpoint, 2, LAYERS)
    assert chosen.source == "--routing"
    assert chosen.layers[2].policy == TopK(top_k=1, norm_topk_prob=False)
    chosen = choose_routing(None, checkpoint, 2, LAYERS)
    assert chosen.source == "checkpoint"
    assert chosen.layers[2].policy == LTDR(top_k=2, norm_topk_prob=True, tail_experts=3)
    chosen = choose_routing(None, None, 2, LAYERS)
    assert chosen.source == "default"
    assert chosen.layers[2].policy == TopK(top_k=2, norm_topk_prob=True)


def test_the_source_of_each_setting() -> None:
    operator = {"policy": "ltdr", "tail_experts": 3}
    assert choose_routing(operator, None, 2, LAYERS).layers[0].sources == {
        "policy": "--routing",
        "top_k": "checkpoint",
        "norm_topk_prob": "default",
        "tail_experts": "--routing",
        "head_experts": "default",
        "text_experts": "default",
        "selection": "default",
        "mean_over": "default",
        "threshold": "default",
        "request_experts": "default",
    }


def test_one_layer_can_differ() -> None:
    operator = {"policy": "ltdr", "tail_experts": 4, "layers": {"2": {"tail_experts": 3}}}
    layers = choose_routing(operator, None, 2, LAYERS).layers
    assert layers[0].policy == LTDR(top_k=2, norm_topk_prob=True, tail_experts=4)
    assert layers[2].policy == LTDR(top_k=2, norm_topk_prob=True, tail_experts=3)


def test_a_layer_of_another_policy_starts_from_its_defaults() -> None:
    operator = {"policy": "ltdr", "top_k": 1, "tail_experts": 4, "layers": {"2": {"policy": "topk"}}}
    in_force = choose_routing(operator, None, 2, LAYERS)
    assert in_force.layers[2].policy == TopK(top_k=2, norm_topk_prob=True)
    assert in_force.needs_whole_images


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"policy": "best"}, "policy is 'best': give one of topk, ltdr"),
        ({"policy": ["topk"]}, "give one of topk, ltdr"),
        ({}, "policy is None: give one of topk, ltdr"),
        ({"policy": "ltdr", "tail": 4}, "tail: Extra inputs"),
        ({"policy": "topk", "top_k": 0}, "top_k: Input should be greater than or equal to 1"),
        ({"policy": "topk", "layers": {"1": {}, "7": {}}}, "layers names 1, 7, but the MoE layers are 0, 2."),
        ({"policy": "topk", "layers": [2]}, "layers takes an object"),
        ({"policy": "topk", "layers": {"2": 1}}, "layers takes an object"),
        ({"policy": "topk", "layers": {"2": {"tail": 1}}}, "tail: Extra inputs"),
        ({"policy": "topk", "top_k": 5}, "top_k is 5: give a number from 1 to the layer's 4 experts."),
        ({"policy": "ltdr", "tail_experts": 9}, "tail_experts is 9: give a number from 1 to"),
        ({"policy": "ltdr", "head_experts": 0}, "head_experts: Input should be greater than or equal to 1"),
        ({"policy": "ltdr", "text_experts": 5}, "text_experts is 5: give a number from 1 to"),
        ({"policy": "ltdr", "selection": "both"}, "selection: Input should be 'tail' or 'head'"),
        ({"policy": "ltdr", "threshold": -1}, "threshold: Input should be greater than or equal to 0"),
        ({"policy": "gmm", "top_k": 5}, "top_k is 5: give a number from 1 to"),
        ({"policy": "gmm", "components": 0}, "components: Input should be greater than or equal to 1"),
        (
            {"policy": "modality_conditioned", "form": "times"},
            "form: Input should be 'add', 'concat', 'bias' or 'gate'",
        ),
        ({"policy": "modality_groups", "vision_group": 4}, "leave none of the layer's 4 experts to text"),
        ({"policy": "modality_groups", "vision_experts": 3}, "vision_experts is 3: give a number from 1 to"),
        ({"policy": "modality_groups", "text_experts": 3}, "text_experts is 3: give a number from 1 to"),
        ({"policy": "modality_groups", "shared_experts": 3}, "vision_experts is 1: give a number"),
        ({"policy": "ltdr", "mean_over": "batch"}, "mean_over: Input should be 'image' or 'request'"),
        (
            {"policy": "ltdr", "mean_over": "request", "threshold": 0.1},
            "a threshold replaces the mean: leave threshold or mean_over out",
        ),
        ({"policy": "equiroute", "top_k": 5}, "top_k is 5: give a number from 1 to"),
        ({"policy": "equiroute", "reserved_slots": 3}, "are more than the layer's 4 experts: lower one"),
        ({"policy": "top_any", "top_k": 2}, "top_k: Extra inputs"),
        ({"policy": "cosine", "latent": 0}, "latent: Input should be greater than or equal to 1"),
        ({"policy": "bias_corrected", "score": "tanh"}, "score: Input should be 'softmax' or 'sigmoid'"),
        ({"policy": "fine_grained", "shared_experts": 3}, "are more than the layer's 4 experts"),
        ({"policy": "dual_threshold", "vision_threshold": -0.1}, "vision_threshold: Input should be greater"),
        ({"policy": "entropy", "max_experts": 5}, "max_experts is 5: give a number from 1 to"),
        (
            {"policy": "entropy", "min_experts": 3, "max_experts": 2},
            "min_experts is 3: give a number from 1 to",
        ),
        ({"policy": "entropy", "low": 0.5, "high": 0.5}, "give a low below high"),
        ({"policy": "task", "default_task": 4}, "default_task is 4: give a label from 0 to 3"),
        ({"policy": "task", "experts": [0, 1]}, "experts names 2 experts for 4 tasks: give one for each"),
        ({"policy": "task", "experts": [0, 1, 2, 3]}, "experts names one expert for each task: give top_k 1"),
        (
            {"policy": "task", "experts": [0, 1, 2, 4], "top_k": 1},
            "experts names expert 4: the layer's are 0 to 3.",
        ),
        ({"policy": "cluster", "clusters": 0}, "clusters: Input should be greater than or equal to 1"),
        ({"policy": "instruction", "top_k": 5}, "top_k is 5: give a number from 1 to"),
    ],
)
def test_settings_that_a_policy_lacks_are_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match="The routing settings in --routing cannot be used") as error:
        choose_routing(settings, None, 2, LAYERS)
    assert complaint in str(error.value)


@pytest.mark.parametrize("name", POLICIES)
def test_each_policy_runs_on_four_experts_with_its_defaults(name: str) -> None:
    layer = choose_routing({"policy": name}, None, 2, LAYERS).layers[0]
    assert layer.policy.policy == name
    assert layer.sources["policy"] == "--routing"
    assert set(layer.sources) == set(type(layer.policy).model_fields)


class Own(TopK):
    """A policy of another package."""

    policy: Literal["own"] = "own"  # type: ignore[assignment]


def entry_point(name: str, attribute: str) -> EntryPoint:
    return EntryPoint(name, f"{__name__}:{attribute}", ENTRY_POINTS)


def test_an_installed_package_adds_a_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    found = installed_policies([entry_point("own", "Own")])
    assert found == {"own": Own}
    monkeypatch.setitem(POLICIES, "own", found["own"])
    assert choose_routing({"policy": "own"}, None, 2, LAYERS).layers[2].policy == Own(
        top_k=2, norm_topk_prob=True
    )


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([("own", "LAYERS")], "is not a RoutingPolicy"),
        ([("mine", "Own")], "needs the name that is the default of its field policy"),
        ([("topk", "TopK")], "has the name of another policy"),
        ([("own", "Own"), ("own", "Own")], "has the name of another policy"),
    ],
)
def test_a_broken_entry_point_gives_a_reason(entries: list[tuple[str, str]], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        installed_policies([entry_point(*entry) for entry in entries])
