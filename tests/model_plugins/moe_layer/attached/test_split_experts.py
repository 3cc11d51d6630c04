"""Separate text experts and vision experts: routers get compacted rows, tokens are counted in place."""

from itertools import groupby
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter
from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner

from prismoe.model_plugins.moe_layer.attached import split_experts
from prismoe.model_plugins.moe_layer.attached.attach import SPLIT
from prismoe.model_plugins.moe_layer.attached.checked_policies import CheckedPolicies
from prismoe.model_plugins.moe_layer.attached.split_experts import SplitLayer, SplitRouting, StepKinds
from prismoe.model_plugins.moe_layer.self_check import check_counts
from prismoe.model_plugins.routing.any_gate import OperatorPolicies
from prismoe.model_plugins.routing.gate import SOFTMAX
from prismoe.model_plugins.vllm_seams.engine.split_experts import Kind

EXPERTS, TOP_K, HIDDEN, MOST_TOKENS = 5, 2, 6, 16
LAYERS: dict[int, tuple[Kind, ...]] = {
    1: ("text", "vision"),
    2: ("vision",),
    4: ("text",),
    5: ("text", "vision"),
}
MODALITIES = ("text", "image", "video")
VISION_OF = {"i": "image", "v": "video"}
"""In the steps below, t is text, m a mark around an image, i an image token, v a video token, - padding."""
STEPS = [
    *("t", "i", "m", "ttttt", "iiii", "mii", "tmiimt"),
    *("tmi", "iimt", "vvmmiimt"),  # split inside an image or a video
    *("mvvm--", "ti---", "tt--"),
]


class Router(BaseRouter):
    """Two experts by softmax with a bias, renormalised."""

    def __init__(self, bias_E: Tensor) -> None:
        super().__init__(top_k=TOP_K, global_num_experts=EXPERTS)
        self.bias_E = bias_E

    routing_method_type = None  # type: ignore[assignment]

    def _compute_routing(self, hidden_states: Tensor, router_logits: Tensor, *_: Any, **__: Any) -> Any:
        probs_TE = router_logits.softmax(dim=-1)
        experts_TK = (probs_TE + self.bias_E).topk(TOP_K).indices
        weights_TK = probs_TE.gather(1, experts_TK)
        return weights_TK / weights_TK.sum(dim=-1, keepdim=True), experts_TK.int()


class Runner(MoERunner):
    """The router and the settings of one kind of experts."""

    def __init__(self, layer: int, kind: Kind) -> None:
        nn.Module.__init__(self)
        self.layer_name = f"language_model.model.layers.{layer}.mlp.{kind}_experts"
        draw = torch.Generator().manual_seed(10 * layer + len(kind))
        self.gate_DE = torch.randn(HIDDEN, EXPERTS, generator=draw)
        bias_E = 0.2 * torch.randn(EXPERTS, generator=draw)
        self.moe_config = SimpleNamespace(  # type: ignore[assignment]
            num_logical_experts=EXPERTS, is_sequence_parallel=False, dp_size=1, use_ep=False
        )
        self.router = Router(bias_E)
        self.routed_experts = SimpleNamespace(  # type: ignore[assignment]
            quant_method=SimpleNamespace(is_monolithic=False, supports_internal_mk=False),
            top_k=TOP_K,
            scoring_func="softmax",
            custom_routing_function=None,
            renormalize=True,
            use_grouped_topk=False,
            e_score_correction_bias=bias_E,
            routed_scaling_factor=1.0,
        )

    @property
    def _quant_method(self) -> Any:
        return self.routed_experts.quant_method

    def decide(self, hidden_TD: Tensor) -> Any:
        router: Any = self.router
        return router._compute_routing(hidden_TD, hidden_TD @ self.gate_DE, None)


class Decoder(nn.Module):
    """Splits a step's tokens like vLLM's ERNIE."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleDict({kind: Runner(layer, kind) for kind in kinds}) for layer, kinds in LAYERS.items()
        )

    def forward(self, hidden_TD: Tensor, visual_token_mask: Tensor | None = None) -> None:
        is_vision_T = torch.zeros(len(hidden_TD), dtype=torch.bool)
        if visual_token_mask is not None:
            is_vision_T = visual_token_mask[:, 0]
        layers: list[Any] = [*self.layers]
        for runners in layers:
            for kind, rows_T in (("text", ~is_vision_T), ("vision", is_vision_T)):
                if kind in runners and rows_T.any():
                    runners[kind].decide(hidden_TD[rows_T])


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.language_model = nn.Module()
        self.language_model.model = Decoder()
        self.weight = nn.Parameter(torch.zeros(1))

    def embed_input_ids(self, input_ids: Tensor, *_: Any, **__: Any) -> Tensor:
        return input_ids[:, None].float()

    def runner(self, layer: int, kind: Kind) -> Any:
        decoder: Any = self.language_model.model
        return decoder.layers[[*LAYERS].index(layer)][kind]


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def routing(model: Model, monkeypatch: pytest.MonkeyPatch) -> SplitRouting:
    monkeypatch.setattr(split_experts, "check", lambda needs: None)
    return SplitRouting(vllm_config(), model, MODALITIES)


def vllm_config() -> Any:
    return SimpleNamespace(
        model_config=SimpleNamespace(architecture=next(iter(SPLIT))),
        scheduler_config=SimpleNamespace(max_num_batched_tokens=MOST_TOKENS),
    )


def hidden_of(step: str) -> Tensor:
    return torch.randn(len(step), HIDDEN, generator=torch.Generator().manual_seed(len(step)))


def is_vision(step: str) -> np.ndarray:
    """Like in vLLM, a mark is text if the step holds no image or video."""
    has_media = {"i", "v"} & {*step}
    return np.array([token in "miv" and bool(has_media) for token in step])


def take(model: Model, step: str) -> None:
    """Run the model's forward pass of a step with padding at its end."""
    tokens = step.rstrip("-")
    parts = []
    for token, run in groupby(tokens):
        if token in VISION_OF:
            part: Any = torch.zeros(len([*run]), HIDDEN)
            part.modality = VISION_OF[token]
            parts.append(part)
    is_media_T = torch.tensor([token in "iv" for token in tokens])
    model.embed_input_ids(torch.zeros(len(tokens), dtype=torch.long), parts, is_multimodal=is_media_T)
    mask_T1 = torch.from_numpy(is_vision(step))[:, None] if parts else None
    model.language_model.model(hidden_of(step), visual_token_mask=mask_T1)  # type: ignore[operator]


def rule(model: Model, layer: int, kind: Kind, hidden_D: np.ndarray) -> tuple[list[int], np.ndarray]:
    """In float64: the experts by their numbers in the layer, best first, and the probabilities."""
    runner = model.runner(layer, kind)
    logits_E = hidden_D @ runner.gate_DE.double().numpy()
    probs_E = np.exp(logits_E - logits_E.max())
    probs_E /= probs_E.sum()
    best = np.argsort(-(probs_E + runner.router.bias_E.double().numpy()))[:TOP_K]
    return [int(expert) + EXPERTS * (kind == "vision") for expert in best], probs_E


@pytest.mark.parametrize("step", STEPS)
def test_each_token_is_counted_once_by_its_kinds_router(
    model: Model, routing: SplitRouting, step: str
) -> None:
    take(model, step[::-1].lstrip("-"))  # the step overwrites what this leaves in the buffers
    routing.end_step()
    routing.reset_load()
    take(model, step)
    rows = routing.step.routed()
    hidden = hidden_of(step).double().numpy()
    counts = np.zeros((len(LAYERS), len(MODALITIES), 2 * EXPERTS), dtype=np.int64)
    sums = np.zeros((2, len(LAYERS), len(MODALITIES)))
    for place, (layer, kinds) in enumerate(LAYERS.items()):
        for token, letter in enumerate(step.rstrip("-")):
            modality = {"i": 1, "v": 2}.get(letter, 0)
            kind: Kind = "vision" if is_vision(step)[token] else "text"
            if kind not in kinds:
                assert rows.count_LT[place, token] == 0
                continue
            experts, probs_E = rule(model, layer, kind, hidden[token])
            assert {*rows.experts_LTA[place, token].tolist()} == {*experts}
            counts[place, modality, experts] += 1
            if len(kinds) == 2:
                sums[:, place, modality] += -(probs_E * np.log(probs_E)).sum(), probs_E.var()
    routing.end_step()
    load = routing.load()
    assert load["layers"] == [*LAYERS]
    assert load["expert_tokens"] == counts.tolist()
    tokens = [sum(letter in letters for letter in step.rstrip("-")) for letters in ("tm", "i", "v")]
    assert load["tokens"] == [tokens] * len(LAYERS)
    assert load["scored_tokens"] == [tokens, [0] * 3, [0] * 3, tokens]
    assert load["near_ties"] == [[None] * 3] * len(LAYERS)
    np.testing.assert_allclose(load["routing_entropy"], sums[0], atol=1e-4)
    np.testing.assert_allclose(load["routing_variance"], sums[1], atol=1e-4)


def test_the_inspector_gets_logits_and_weights_by_token(model: Model, routing: SplitRouting) -> None:
    seen: list[tuple[Tensor, ...]] = []
    for router in routing.routers.values():
        router.observer = lambda *parts: seen.append(parts)
    step = "tmiimt"
    take(model, step)
    hidden_TD = hidden_of(step)
    assert torch.equal(seen[0][0], hidden_TD)
    for token, of_vision in enumerate(is_vision(step)):
        runner = model.runner(1, "vision" if of_vision else "text")
        torch.testing.assert_close(seen[0][1][token], hidden_TD[token] @ runner.gate_DE)
    torch.testing.assert_close(routing.step.weights[0, : len(step)].sum(dim=1), torch.ones(len(step)))
    assert torch.equal(seen[0][3], routing.step.weights[0, : len(step)])


@pytest.mark.parametrize("step", ["t", "iiii", "tmiimt"])
def test_an_observer_gets_each_token_of_a_step(model: Model, routing: SplitRouting, step: str) -> None:
    seen: dict[int, int] = {}
    for layer, router in routing.routers.items():
        router.observer = lambda hidden_TD, *_, layer=layer: seen.update({layer: len(hidden_TD)})
    take(model, step)
    assert seen == {1: len(step), 5: len(step)}


def test_a_kernel_that_routes_by_itself_only_reports_its_experts(routing: SplitRouting) -> None:
    kinds = StepKinds()
    kinds.begin_step(torch.tensor([[True], [False], [True]]))
    layer = SplitLayer(routing.step, 0, kinds, {"text": 0, "vision": EXPERTS}, SOFTMAX)
    layer.chosen("text", torch.tensor([[3, 1]]))
    layer.chosen("vision", torch.tensor([[0, 2], [4, 1]]))
    assert routing.step.experts[0, :3].tolist() == [[5, 7], [3, 1], [9, 6]]
    assert routing.step.weights[0, :3].isnan().all()


def test_an_aborted_step_does_not_disturb_later_counts(model: Model, routing: SplitRouting) -> None:
    layer: Any = routing.routers[1]
    layer.chosen("vision", torch.tensor([[0, 1]]))  # its text experts were never called
    routing.step.forget_rows()
    take(model, "tt")
    used_L, written_L = routing.step.experts_written()
    assert used_L == written_L


@pytest.mark.parametrize("kind", ["text", "vision"])
def test_the_self_check_covers_both_kinds(kind: Kind, model: Model, routing: SplitRouting) -> None:
    """It finds a router that prismoe doesn't observe."""

    def take_step() -> None:
        model.language_model.model(hidden_of("tttt"), visual_token_mask=model.visual_token_mask)  # type: ignore[operator]

    assert check_counts(routing, 4, take_step) is None
    model.runner(1, kind).decide = lambda hidden_TD: None
    found = check_counts(routing, 4, take_step)
    assert found is not None and found.sums.layer == 1


def test_the_description_of_the_layers(routing: SplitRouting) -> None:
    reported = routing.describe()
    assert reported["in_force"] == "native" and not reported["not_supported"]
    assert [layer["experts"] for layer in reported["layers"]] == [2 * EXPERTS] * len(LAYERS)
    gate = "softmax, with a bias, renormalised; experts"
    assert [layer["gate"] for layer in reported["layers"][:3]] == [
        f"{gate} 0 to 4 are text's, 5 to 9 are vision's",
        f"{gate} 5 to 9 are vision's",
        f"{gate} 0 to 4 are text's",
    ]


def test_there_is_no_policy_and_no_shadow(model: Model) -> None:
    policies = OperatorPolicies.of({"policy": "topk"})
    for start in (CheckedPolicies.of, SplitRouting):
        with pytest.raises(
            ValueError, match="experts for text and experts for vision, and no policy supports that"
        ):
            start(vllm_config(), model, MODALITIES, policies)
