"""The fused writer compared with the plain one, in Triton's interpreter."""

import pytest
import torch
from torch import Tensor

from prismoe.kernels.expert_load import Confidence
from prismoe.kernels.layer_rows import LayerRows, write_rows
from prismoe.kernels.triton.layer_rows import check_write_rows, write_rows_fused

EXPERTS, SLOTS, MOST, SAMPLED = 7, 3, 40, 10


def rows(left_out: set[str]) -> LayerRows:
    """The rows of a layer of a wider model, filled with values that no router decides."""
    parts = {
        "sampled_S": torch.arange(SAMPLED) * 3,
        "experts_TA": torch.full((MOST, 5), 99, dtype=torch.int32),
        "weights_TA": torch.full((MOST, 5), 99.0),
        "count_T": torch.full((MOST,), 99, dtype=torch.int32),
        "tail_T": torch.ones(MOST, dtype=torch.bool),
        "logits_SE": torch.full((SAMPLED, 9), 99.0),
        "scores_SE": torch.full((SAMPLED, 9), 99.0),
    }
    return LayerRows(**{name: None if name in left_out else part for name, part in parts.items()})  # type: ignore[arg-type]


@pytest.mark.parametrize("tokens", [1, 9, 10, 11, 30])
@pytest.mark.parametrize(
    "left_out", [set(), {"count_T", "tail_T"}, {"logits_SE", "scores_SE"}, {"scores_SE"}]
)
@pytest.mark.parametrize("message", ["all", "experts", "experts and logits"])
def test_it_writes_the_same_as_the_plain_writer(tokens: int, left_out: set[str], message: str) -> None:
    generator = torch.Generator().manual_seed(tokens)
    logits_TE = torch.randn(tokens, EXPERTS, generator=generator)
    experts_TA = logits_TE.argsort(dim=1)[:, :SLOTS]
    weights_TA: Tensor | None = logits_TE[:, :SLOTS]
    count_T: Tensor | None = torch.arange(tokens) % (SLOTS + 1)
    tail_T: Tensor | None = logits_TE[:, 0] > 0
    confidence: Confidence | None = Confidence(logits_TE, -logits_TE)
    if message != "all":
        count_T, tail_T, weights_TA = None, None, None
        confidence = Confidence(logits_TE) if message == "experts and logits" else None
    fused, plain = rows(left_out), rows(left_out)
    write_rows_fused(fused, experts_TA, weights_TA, count_T, tail_T, confidence)
    write_rows(plain, experts_TA, weights_TA, count_T, tail_T, confidence)
    for name, ours, expected in zip(LayerRows._fields, fused, plain, strict=True):
        if expected is not None:
            assert ours is not None
            torch.testing.assert_close(ours, expected, equal_nan=True, rtol=0, atol=0, msg=name)
    assert plain.experts_TA[:tokens, :SLOTS].tolist() == experts_TA.tolist()
    assert (plain.experts_TA[tokens:] == 99).all()


def test_the_start_check_finds_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    check_write_rows("cpu")
    module = "prismoe.kernels.triton.layer_rows.write_rows_fused"
    monkeypatch.setattr(module, lambda to, experts_TA, *rest: write_rows(to, experts_TA + 1, *rest))
    with pytest.raises(AssertionError, match="rows differ"):
        check_write_rows("cpu")
