"""What is kept of a step, and that a deprived modality gets nothing of a layer's experts."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prismoe.kernels.routing import PADDING, TEXT
from prismoe.model_plugins.recording.calibration import CalibrationRecorder

SEGMENT_T = torch.tensor([TEXT, 0, 0, TEXT, TEXT, PADDING])
HIDDEN_TD = torch.arange(12.0).view(6, 2)


class OneStep(nn.Module):
    """Two routers, each asked once; gives the hidden states back."""

    def __init__(self, routing: Any) -> None:
        super().__init__()
        self.routing = routing
        self.weights: dict[int, Tensor] = {}

    def forward(self, hidden_TD: Tensor) -> Tensor:
        for layer, router in self.routing.routers.items():
            self.weights[layer] = torch.ones(6, 2)
            logits_TE = hidden_TD[:, :1] * torch.tensor([1.0, layer, 0.0])
            router.observer(hidden_TD + layer, logits_TE, torch.zeros(6, 2), self.weights[layer])
        return hidden_TD

    def compute_logits(self, hidden_TD: Tensor) -> Tensor:
        return hidden_TD


@pytest.fixture
def model() -> OneStep:
    routers = {layer: SimpleNamespace(observer=None, policy=f"policy of {layer}") for layer in (0, 3)}
    segments = torch.cat([SEGMENT_T, torch.full((4,), PADDING)])
    return OneStep(
        SimpleNamespace(
            routers=routers,
            step=SimpleNamespace(tokens=SimpleNamespace(segments=segments)),
            layers={layer: SimpleNamespace(experts=3) for layer in routers},
        )
    )


def test_tokens_are_kept_without_padding(model: OneStep) -> None:
    recorder = CalibrationRecorder(model, model.routing)
    model(HIDDEN_TD)
    rows = recorder.take(hidden=3)
    assert rows["segments"].tolist() == SEGMENT_T[:5].tolist()
    assert len(set(rows["sample"].tolist())) == 3
    for layer in (0, 3):
        assert np.array_equal(rows[f"{layer}_logits"][:, 1], layer * HIDDEN_TD[:5, 0].numpy())
        assert np.array_equal(rows[f"{layer}_hidden"], HIDDEN_TD[rows["sample"]].numpy() + layer)
    assert np.allclose(recorder.log_probs(2), torch.log_softmax(HIDDEN_TD[3:5], dim=-1))
    assert len(recorder.take(hidden=100)["sample"]) == 5


@pytest.mark.parametrize(("modality", "deprived"), [("text", [0, 3, 4, 5]), ("vision", [1, 2])])
def test_a_deprived_modality_has_no_weights_in_that_layer(
    model: OneStep, modality: str, deprived: list[int]
) -> None:
    recorder = CalibrationRecorder(model, model.routing)
    recorder.deprived = (3, modality)
    model(HIDDEN_TD)
    assert torch.equal(model.weights[0], torch.ones(6, 2))
    assert (model.weights[3].sum(dim=1) == 0).nonzero().flatten().tolist() == deprived


def test_a_routing_is_tried_layer_by_layer_and_the_own_one_returns(model: OneStep) -> None:
    recorder = CalibrationRecorder(model, model.routing)
    routers = model.routing.routers
    settings = {"policy": "dual_threshold", "text_threshold": 0.1, "layers": {"3": {"text_importance": 2}}}
    recorder.try_routing(settings, top_k=2)
    assert [router.policy.text_importance for router in routers.values()] == [1, 2]
    assert {(router.policy.top_k, router.policy.text_threshold) for router in routers.values()} == {(2, 0.1)}
    recorder.try_routing(None, top_k=2)
    assert [router.policy for router in routers.values()] == ["policy of 0", "policy of 3"]
