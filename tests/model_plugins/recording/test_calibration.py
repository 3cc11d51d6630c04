"""The recording of a step. A deprived modality gets no output from a layer's experts."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prismoe.kernels.routing import PADDING, TEXT
from prismoe.model_plugins.recording.calibration import CalibrationRecorder, TokenValues
from prismoe.model_plugins.routing.gate import SOFTMAX

SEGMENT_T = torch.tensor([TEXT, 0, 0, TEXT, TEXT, PADDING])
HIDDEN_TD = torch.arange(12.0).view(6, 2)


class OneStep(nn.Module):
    """A model with two routers, each called once. It returns the hidden states unchanged."""

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
        return hidden_TD * torch.tensor([1.0, 0.5])  # a softmax would hide a constant difference between rows


@pytest.fixture
def model() -> OneStep:
    routers = {layer: SimpleNamespace(observer=None, gate=SOFTMAX) for layer in (0, 3)}
    segments = torch.cat([SEGMENT_T, torch.full((4,), PADDING)])
    return OneStep(
        SimpleNamespace(routers=routers, step=SimpleNamespace(tokens=SimpleNamespace(segments=segments)))
    )


def test_tokens_are_kept_without_padding(model: OneStep) -> None:
    recorder = CalibrationRecorder(model, model.routing, TokenValues("weights", 2, True, 3, True), 4)
    recorder.begin()
    model(HIDDEN_TD)
    rows = recorder.take(seed=7)
    assert rows["is_vision"].tolist() == [False, True, True, False, False]
    assert len(set(rows["sample"].tolist())) == 3
    sample = rows["sample"]
    for layer in (0, 3):
        assert np.array_equal(rows[f"{layer}_logits"][:, 1], layer * HIDDEN_TD[sample, 0].numpy())
        assert np.array_equal(rows[f"{layer}_hidden"], HIDDEN_TD[sample].numpy() + layer)
        logits_TE = HIDDEN_TD[:5, :1] * torch.tensor([1.0, layer, 0.0])
        best_TA = logits_TE.topk(2).values.double().softmax(dim=-1)
        assert np.allclose(rows[f"{layer}_measure"], best_TA)
    assert np.allclose(recorder.log_probs(2), torch.log_softmax(model.compute_logits(HIDDEN_TD[3:5]), dim=-1))


def test_steps_of_a_request_are_put_together_and_others_are_left_out(model: OneStep) -> None:
    recorder = CalibrationRecorder(model, model.routing, TokenValues("entropy", 2, True), 7)
    model(HIDDEN_TD)
    recorder.begin()
    model(HIDDEN_TD)
    model(HIDDEN_TD + 1)
    rows = recorder.take(seed=0)
    model(HIDDEN_TD + 2)
    assert rows.keys() == {"is_vision", "sample", "0_measure", "3_measure"}
    assert rows["is_vision"].tolist() == [False, True, True, False, False] * 2
    assert rows["0_measure"].shape == (10, 1)
    last_TD = torch.cat([HIDDEN_TD[3:5] + 1, HIDDEN_TD[:5] + 2])
    assert np.allclose(recorder.log_probs(7), torch.log_softmax(model.compute_logits(last_TD), dim=-1))


@pytest.mark.parametrize(("modality", "deprived"), [("text", [0, 3, 4, 5]), ("vision", [1, 2])])
def test_a_deprived_modality_has_no_weights_in_that_layer(
    model: OneStep, modality: str, deprived: list[int]
) -> None:
    recorder = CalibrationRecorder(model, model.routing, TokenValues(None, 2, True), 1)
    recorder.deprived = (3, modality)
    model(HIDDEN_TD)
    assert torch.equal(model.weights[0], torch.ones(6, 2))
    assert (model.weights[3].sum(dim=1) == 0).nonzero().flatten().tolist() == deprived
