"""The table of the changes by calibration, for a recording with known figures."""

import torch

from prismoe.kernels.routing import TEXT
from prismoe.model_plugins.routing.registry import choose_routing
from prismoe.model_plugins.tools.calibrate.fits.data import CalibrationData, RoutedLayer, TokenSample
from prismoe.model_plugins.tools.calibrate.report import report


def table(settings: dict[str, object], routers: dict[int, dict[str, torch.Tensor]]) -> dict[str, str]:
    """The row of the layer by name, with its columns joined."""
    logits_NE = torch.tensor([[3.0, 2.0, 1.0, 0.0]] * 2 + [[0.0, 0.0, 9.0, 9.0]] * 2)
    segment_N = torch.tensor([TEXT, TEXT, 0, 0])
    sample = TokenSample(logits_NE, segment_N, torch.tensor([[-1.0], [-1.0], [1.0], [1.0]]))
    data = CalibrationData({6: RoutedLayer(4, sample)}, 2)
    before = choose_routing(None, {"policy": "topk"}, 2, {6: 4})
    lines = report(data, before, choose_routing(None, settings, 2, {6: 4}), routers).splitlines()
    layer, *figures = lines[2].split()
    assert layer == "6"
    joined = " ".join(figures).replace(" → ", "→").split()
    return dict(zip(("text", "vision", "entropy", "cv", "agreement"), joined, strict=True))


def test_other_numbers_of_experts() -> None:
    settings = {"policy": "ltdr", "text_experts": 1, "head_experts": 3}
    row = table(settings, {})
    assert (row["text"], row["vision"]) == ("2.00→1.00", "2.00→3.00")
    assert row["cv"] == "0.00→0.71"  # 2, 2, 2, 2 uses, then 4, 0, 2, 2: √2 of 2
    assert row["entropy"] == "1.18→1.18"  # 1.37 and 1 bits
    assert row["agreement"] == "100.0%"


def test_a_gmm_is_judged_by_its_hidden_states() -> None:
    """Its two mixtures give the text token expert 0 twice, of which the gate would use 0 and 1, and the
    vision token experts 0 and 3, of which it would use 2 and 3."""
    means_KEML = torch.tensor([[-1.0, 50.0, 50.0, 50.0], [-1.0, 50.0, 50.0, 1.0]]).view(2, 4, 1, 1)
    means_KEML[0, 0] = 0.0
    router = {
        "encoder": torch.ones(1, 1),
        "encoder_bias": torch.zeros(1),
        "log_mixing": torch.zeros(2, 4, 1),
        "means": means_KEML,
        "log_variances": torch.full((2, 4, 1, 1), -4.0),
    }
    row = table({"policy": "gmm", "latent": 1, "components": 1}, {6: router})
    assert (row["text"], row["vision"]) == ("2.00→2.00", "2.00→2.00")
    assert row["agreement"] == "75.0%"
    assert row["entropy"] == "1.18→0.50"  # 0 and 1 bits
