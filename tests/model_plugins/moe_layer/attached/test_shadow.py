"""A shadow next to the routers of a vLLM model: the same tokens, with separate counts."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from vllm.model_executor.layers.fused_moe.router.fused_topk_router import FusedTopKRouter
from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner

from prismoe.model_plugins.moe_layer.attached import checked_policies
from prismoe.model_plugins.moe_layer.attached.native import NativeRouting
from prismoe.model_plugins.moe_layer.step import Media
from prismoe.model_plugins.routing.any_gate import OperatorPolicies
from prismoe.model_plugins.routing.calibrated import ModelIdentity
from tests.model_plugins.routing.test_calibrated import MEASURED, MODEL

EXPERTS, TOP_K, TOKENS, HIDDEN = 4, 2, 16, 8
SHADOW = {"policy": "ltdr", "threshold": 0.0, "tail_experts": 3, "head_experts": 1, "text_experts": 1}
"""A policy under which all tokens of an image are tail tokens."""
LOGITS_E = torch.tensor([0.0, 3.0, 1.0, 2.0])


class Router(FusedTopKRouter):
    """Two experts by softmax, in plain PyTorch."""

    def __init__(self) -> None:
        super().__init__(top_k=TOP_K, global_num_experts=EXPERTS)

    def _compute_routing(self, hidden_states: Tensor, router_logits: Tensor, *_: Any, **__: Any) -> Any:
        weights_TK, experts_TK = router_logits.softmax(dim=-1).topk(TOP_K)
        return weights_TK / weights_TK.sum(dim=-1, keepdim=True), experts_TK.int()


class Runner(MoERunner):
    """The router and the settings of a vLLM MoE layer."""

    def __init__(self, layer: int) -> None:
        nn.Module.__init__(self)
        self.layer_name = f"model.layers.{layer}.mlp.experts"
        self.moe_config = SimpleNamespace(  # type: ignore[assignment]
            num_logical_experts=EXPERTS,
            hidden_dim=HIDDEN,
            is_sequence_parallel=False,
            dp_size=1,
            use_ep=False,
        )
        self.router = Router()
        self.routed_experts = SimpleNamespace(  # type: ignore[assignment]
            quant_method=SimpleNamespace(is_monolithic=False, supports_internal_mk=False),
            top_k=TOP_K,
            scoring_func="softmax",
            custom_routing_function=None,
            renormalize=True,
            use_grouped_topk=False,
            e_score_correction_bias=None,
            routed_scaling_factor=1.0,
            apply_router_weight_on_input=False,
            w2_weight=torch.zeros(1),
        )

    @property
    def _quant_method(self) -> Any:
        return self.routed_experts.quant_method


class Model(nn.Module):
    """A model that has MoE layers 1 and 3, and embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.runners = nn.ModuleList([Runner(1), Runner(3)])
        self.weight = nn.Parameter(torch.zeros(1))

    def embed_input_ids(self, input_ids: Tensor, *_: Any, **__: Any) -> Tensor:
        return input_ids[:, None].float()

    def forward(self, num_tokens: int) -> list[Any]:
        """The routers' results for a step."""
        logits_TE = LOGITS_E.expand(num_tokens, EXPERTS)
        hidden_TD = torch.zeros(num_tokens, HIDDEN)
        routers: list[Any] = [runner.router for runner in self.runners]
        return [router._compute_routing(hidden_TD, logits_TE, None) for router in routers]


def routing_of(model: Model, shadow: dict[str, Any] | None = SHADOW) -> NativeRouting:
    config: Any = SimpleNamespace(
        model_config=SimpleNamespace(architecture="Some"),
        scheduler_config=SimpleNamespace(max_num_batched_tokens=TOKENS),
    )
    policies = None if shadow is None else OperatorPolicies.of(shadow, "--shadow")
    return NativeRouting(config, model, ["text", "image", "video"], policies)


def take_step(model: Model, routing: NativeRouting) -> list[Any]:
    """Run a step with a text token, two image tokens, and padding."""
    is_media_T = torch.tensor([False, True, True])
    routing.step.tokens.mark(is_media_T, [Media("image", 2)], num_tokens=3)
    decided = model(5)
    routing.end_step()
    return decided


def test_both_count_the_same_tokens_by_their_own_rules() -> None:
    model = Model()
    routing = routing_of(model)
    for _ in range(2):
        take_step(model, routing)
    load = routing.load()
    assert load["expert_tokens"] == [[[0, 2, 0, 2], [0, 4, 0, 4], [0] * 4]] * 2
    assert load["tail_tokens"] == [0, 0]
    shadow = load["shadow"]
    assert shadow["expert_tokens"] == [[[0, 2, 0, 0], [0, 4, 4, 4], [0] * 4]] * 2
    assert shadow["tail_tokens"] == [4, 4]
    for name in ("modalities", "layers", "tokens", "scored_tokens", "routing_entropy"):
        assert shadow[name] == load[name]


def test_the_routers_decide_the_same_without_it() -> None:
    decided = []
    for shadow in (SHADOW, None):
        model = Model()
        decided.append(take_step(model, routing_of(model, shadow)))
    for (weights_TK, experts_TK), (alone_TK, chosen_TK) in zip(*decided, strict=True):
        assert torch.equal(weights_TK, alone_TK) and torch.equal(experts_TK, chosen_TK)


def test_dummy_steps_count_nothing_and_a_reset_clears_both() -> None:
    model = Model()
    routing = routing_of(model)
    model(TOKENS)  # warming up, before any step
    take_step(model, routing)
    before = routing.load()
    model(TOKENS)
    assert routing.load() == before and before["shadow"]["tokens"] == [[1, 2, 0]] * 2
    routing.reset_load()
    after = routing.load()
    assert after["tokens"] == after["shadow"]["tokens"] == [[0, 0, 0]] * 2


def test_the_report_of_a_shadow() -> None:
    reported = routing_of(Model()).describe()
    assert [layer["policy"] for layer in reported["layers"]] == [{"policy": "native"}] * 2
    for layer, shadow in zip(reported["layers"], reported["shadow"], strict=True):
        assert shadow["policy"].items() >= SHADOW.items()
        assert shadow["sources"]["threshold"] == "--shadow"
        for name in ("layer", "experts", "top_k", "gate", "kernel"):
            assert shadow[name] == layer[name]
    assert "shadow" not in routing_of(Model(), None).describe()


@pytest.mark.parametrize(
    ("shadow", "message"),
    [
        ({"policy": "native"}, "The routing settings in --shadow cannot be used: policy is 'native'"),
        ({"policy": "ltdr"}, "compares the tokens of a whole image"),
        ({"policy": "gmm"}, "has its own router"),
        ({"policy": "dual_threshold", "top_k": 9}, "from 1 to the layer's 4 experts"),
    ],
)
def test_a_policy_that_cannot_be_in_force_is_refused(shadow: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        routing_of(Model(), shadow)


def test_settings_calibrated_for_another_model_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    this = ModelIdentity(**MODEL)
    monkeypatch.setattr(checked_policies, "identity_of", lambda *_: this)
    written = {"model": MODEL, "measured": MEASURED}
    assert routing_of(Model(), SHADOW | {"calibrated": written}).shadow is not None
    other = {**written, "model": MODEL | {"layers": 3}}
    with pytest.raises(ValueError, match="calibrated for another model"):
        routing_of(Model(), SHADOW | {"calibrated": other})


def test_a_model_that_cannot_be_observed_has_no_shadow() -> None:
    model = Model()
    model.runners = nn.ModuleList()
    with pytest.raises(ValueError, match="has no MoE layer"):
        routing_of(model)
