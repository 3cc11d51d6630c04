"""Layers that can't be observed are left alone.

If a kernel routes by itself, the experts that it reports are counted.
"""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from vllm.model_executor.layers.fused_moe.modular_kernel import FusedMoEExpertsMonolithic
from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter
from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner

from prismoe.model_plugins.moe_layer.attached.attach import why_unseen
from prismoe.model_plugins.moe_layer.attached.native import NativeRouting
from prismoe.model_plugins.moe_layer.model_routing import runners_of

MODEL = "NewForConditionalGeneration"
END = "It is served as vLLM serves it, and nothing of its routing is shown."
EXPERTS, K, TOKENS = 4, 2, 16
ONE_RANK = {
    "num_logical_experts": EXPERTS,
    "experts_per_token": K,
    "max_num_tokens": TOKENS,
    "use_ep": False,
    "dp_size": 1,
    "is_sequence_parallel": False,
    "device": "cpu",
}


class Router(BaseRouter):
    """A vLLM router that computes nothing here."""

    def __init__(self) -> None: ...

    routing_method_type = None  # type: ignore[assignment]
    _compute_routing = None  # type: ignore[assignment]


class Silent(FusedMoEExpertsMonolithic):
    """A kernel that gets logits."""

    __init__ = object.__init__
    moe_config = SimpleNamespace(**ONE_RANK)  # type: ignore[assignment]


class Telling(Silent):
    """A kernel that gets logits and reports the experts that it chose."""

    def supports_routing_replay_capture(self) -> bool:
        return True


for fake in (Router, Silent, Telling):
    fake.__abstractmethods__ = frozenset()  # no test calls the rest


class Runner(MoERunner):
    """A vLLM MoE layer that is routed by a router, or by its kernel."""

    def __init__(self, layer: int, kernel: FusedMoEExpertsMonolithic | None = None, engines: int = 1) -> None:
        nn.Module.__init__(self)
        self.layer_name = f"model.layers.{layer}.mlp.experts"
        self.moe_config = SimpleNamespace(**ONE_RANK | {"dp_size": engines})  # type: ignore[assignment]
        self.router = Router()
        held = SimpleNamespace(fused_experts=kernel, impl=SimpleNamespace(fused_experts=kernel))
        method = SimpleNamespace(
            is_monolithic=kernel is not None,
            moe_kernel=held if kernel else None,
            supports_internal_mk=engines > 1,
        )
        self.routed_experts = SimpleNamespace(  # type: ignore[assignment]
            quant_method=method,
            top_k=K,
            scoring_func="softmax",
            custom_routing_function=None,
            renormalize=True,
            use_grouped_topk=False,
            e_score_correction_bias=None,
            routed_scaling_factor=1.0,
            routing_sink=None,
        )

    @property
    def _quant_method(self) -> Any:
        return self.routed_experts.quant_method


class Model(nn.Module):
    """A model that has layers and embeddings."""

    def __init__(self, *runners: Runner) -> None:
        super().__init__()
        self.runners = nn.ModuleList(runners)
        self.weight = nn.Parameter(torch.zeros(1))

    def embed_input_ids(
        self, input_ids: Tensor, embeddings: Any = None, *, is_multimodal: Tensor | None = None
    ) -> Tensor:
        return input_ids[:, None].float()


def routing_of(model: Model, *modalities: str) -> NativeRouting:
    config: Any = SimpleNamespace(
        model_config=SimpleNamespace(architecture=MODEL),
        scheduler_config=SimpleNamespace(max_num_batched_tokens=TOKENS),
    )
    return NativeRouting(config, model, modalities)


def test_layers_with_vllms_routers_are_observed() -> None:
    for runners in ([Runner(0), Runner(1), Runner(3, kernel=Telling())], [Runner(0, engines=2)]):
        assert why_unseen(MODEL, runners, ["text", "image"]) is None


@pytest.mark.parametrize(
    ("runners", "modalities", "sentence"),
    [
        ([], ("text", "image"), f"{MODEL} has no MoE layer that vLLM's MoERunner computes."),
        ([Runner(0, kernel=Silent())], ("text",), "The routing of this kernel (Silent) can't be seen."),
        (
            [Runner(0, kernel=Telling(), engines=2)],
            ("text",),
            "This kernel (Telling) routes the tokens of several data-parallel engines together: choose "
            "another with --moe-backend.",
        ),
        ([Runner(1), Runner(1)], ("text",), f"{MODEL} has more than one set of experts in a decoder layer."),
        ([Runner(0)], ("text", "thermal"), f"prismoe doesn't know {MODEL}'s modality thermal."),
    ],
    ids=["no MoERunner", "no sink", "several engines", "two in a layer", "modality"],
)
def test_the_first_reason_is_reported_and_nothing_is_attached(
    runners: Sequence[Runner], modalities: Sequence[str], sentence: str
) -> None:
    model = Model(*runners)
    embed = model.embed_input_ids
    routing = routing_of(model, *modalities)
    reported = routing.describe()
    assert reported["not_supported"] == [f"{sentence} {END}"]
    assert (reported["architecture"], reported["modalities"], reported["layers"]) == (
        MODEL,
        [*modalities],
        [],
    )
    assert {name for name, lists in routing.load().items() if lists} == {"modalities"}
    assert model.embed_input_ids == embed and routing.routers == {}
    assert [runner.routed_experts.routing_sink for runner in runners] == [None] * len(runners)


@pytest.fixture
def telling() -> tuple[Model, NativeRouting, list[Tensor]]:
    """A model of one layer whose kernel reports its experts, and the reports that another listener got."""
    runner, heard = Runner(5, kernel=Telling()), list[Tensor]()
    runner.routed_experts.routing_sink = SimpleNamespace(capture_fn=heard.append)  # type: ignore[assignment]
    model = Model(runner)
    return model, routing_of(model, "text", "image"), heard


def take_step(model: Model, experts_TA: Tensor, images: Sequence[int] = ()) -> None:
    """Embed these tokens, of which the first belong to the images, and choose their experts."""
    embeddings = [torch.zeros(size, 1) for size in images]
    for embedding in embeddings:
        embedding.modality = "image"  # type: ignore[attr-defined]
    tokens = len(experts_TA)
    model.embed_input_ids(torch.zeros(tokens), embeddings, is_multimodal=torch.arange(tokens) < sum(images))
    (runner,) = runners_of(model)
    sink: Any = runner.routed_experts.routing_sink
    sink.capture_fn(experts_TA)


def test_reported_experts_are_counted(telling: tuple[Model, NativeRouting, list[Tensor]]) -> None:
    model, routing, heard = telling
    experts_TA = torch.tensor([[0, 1], [0, 3], [2, 3], [0, 2], [2, 3]], dtype=torch.int16)
    take_step(model, experts_TA, images=[2])
    assert routing.step.experts[0, :5].tolist() == experts_TA.tolist()
    assert routing.step.weights[0, :5].isnan().all()
    routing.end_step()
    take_step(model, experts_TA[:1])
    routing.end_step()
    load = routing.load()
    assert load["layers"] == [5]
    assert load["tokens"] == [[4, 2]]
    assert load["expert_tokens"] == [[[2, 1, 3, 2], [2, 1, 0, 1]]]
    assert load["tokens_by_experts"] == [[[0, 0, 4], [0, 0, 2]]]
    assert [rows.tolist() for rows in heard] == [experts_TA.tolist(), experts_TA[:1].tolist()]


def test_a_kernel_reports_no_confidence(telling: tuple[Model, NativeRouting, list[Tensor]]) -> None:
    model, routing, _ = telling
    take_step(model, torch.tensor([[0, 1], [0, 3]], dtype=torch.int16))
    routing.end_step()
    load = routing.load()
    assert (load["scored_tokens"], load["near_ties"]) == ([[0, 0]], [[None, None]])
    assert (load["routing_entropy"], load["routing_variance"]) == ([[0.0, 0.0]], [[0.0, 0.0]])
    assert routing.describe()["layers"][0]["gate"] == "softmax, renormalised"


def test_a_dummy_step_counts_nothing(telling: tuple[Model, NativeRouting, list[Tensor]]) -> None:
    """vLLM's dummy steps embed nothing, and the worker doesn't end them."""
    model, routing, _ = telling
    take_step(model, torch.tensor([[0, 1]], dtype=torch.int16))
    routing.end_step()
    (runner,) = runners_of(model)
    sink: Any = runner.routed_experts.routing_sink
    sink.capture_fn(torch.tensor([[2, 3]] * 4, dtype=torch.int16))
    assert routing.load()["expert_tokens"] == [[[1, 1, 0, 0], [0, 0, 0, 0]]]
