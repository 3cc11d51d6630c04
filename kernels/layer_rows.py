"""Writes one MoE layer's decisions for a step's tokens to buffers that outlive the step."""

from typing import NamedTuple

import torch
from torch import Tensor

from prismoe.kernels.expert_load import Confidence


class LayerRows(NamedTuple):
    """One layer's rows in the buffers of a step of at most T tokens. Fields that are None are not written."""

    sampled_S: Tensor  # int64: the tokens whose confidence is kept
    experts_TA: Tensor  # int32
    weights_TA: Tensor  # float32
    count_T: Tensor | None  # int32; None where every token uses all slots
    tail_T: Tensor | None  # bool; None where there are no tail tokens
    logits_SE: Tensor | None  # float32
    scores_SE: Tensor | None  # float32


def write_rows(
    to: LayerRows,
    experts_TA: Tensor,
    weights_TA: Tensor | None,
    count_T: Tensor | None = None,
    tail_T: Tensor | None = None,
    confidence: Confidence | None = None,
) -> None:
    """Write the decision to the first rows of `to`.

    Without `count_T` each token uses all slots; without `tail_T` no token is a tail token. Unknown weights
    become NaN.
    """
    num_tokens, slots = experts_TA.shape
    to.experts_TA[:num_tokens, :slots] = experts_TA
    to.weights_TA[:num_tokens, :slots] = torch.nan if weights_TA is None else weights_TA
    if to.count_T is not None:
        to.count_T[:num_tokens] = slots if count_T is None else count_T
    if to.tail_T is not None:
        to.tail_T[:num_tokens] = False if tail_T is None else tail_T
    if confidence is not None:
        if to.logits_SE is not None:
            _write_sampled(to.logits_SE, to.sampled_S, confidence.logits_TE)
        if to.scores_SE is not None and confidence.scores_TE is not None:
            _write_sampled(to.scores_SE, to.sampled_S, confidence.scores_TE)


def _write_sampled(to_SE: Tensor, sampled_S: Tensor, values_TE: Tensor) -> None:
    num_tokens, experts = values_TE.shape
    if not torch.compiler.is_compiling() and num_tokens <= len(sampled_S):
        to_SE[:num_tokens, :experts] = values_TE
    else:  # a compiled graph must work for any number of tokens
        to_SE[:, :experts] = values_TE[sampled_S.clamp(max=num_tokens - 1)]
