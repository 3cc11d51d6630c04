"""`modality_conditioned`: the router sees each token's modality (arXiv 2604.08134)."""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import linear

from prismoe.kernels.routing import by_modality
from prismoe.model_plugins.routing.policy import LogitsPolicy, RouterInputs


class ModalityConditioned(LogitsPolicy):
    """Top-k of a gate that sees a learned embedding of the token's modality.

    `form` says how: "add" adds it to the hidden state, W(x + e_m); "concat" appends it, W[x; e_m]; "bias" is
    the plain equivalent, Wx + b_m with the layer's own gate, and expresses all that the other two can. The
    source at hand names the embedding without its place, so add and concat are two readings of it. Only
    "gate" can do more than a bias: each modality has its own gate, W_m x + b_m. Row 0 is for text.
    """

    policy: Literal["modality_conditioned"] = "modality_conditioned"
    form: Literal["add", "concat", "bias", "gate"] = "add"
    embedding_size: int = Field(default=32, ge=1)
    """The width of the embedding in the form "concat"."""

    def gate_rows(self, num_experts: int) -> int:
        return num_experts if self.form == "bias" else 0

    def parameters(self, hidden_size: int, num_experts: int) -> Mapping[str, tuple[int, ...]]:
        match self.form:
            case "add":
                return {"weight": (num_experts, hidden_size), "modality_embedding": (2, hidden_size)}
            case "concat":
                width = hidden_size + self.embedding_size
                return {"weight": (num_experts, width), "modality_embedding": (2, self.embedding_size)}
            case "bias":
                return {"modality_bias": (2, num_experts)}
            case "gate":
                return {
                    "modality_weight": (2, num_experts, hidden_size),
                    "modality_bias": (2, num_experts),
                }

    def logits(self, step: RouterInputs) -> Tensor:
        logits_TE, bias_2E = self._without_modality(step)
        return logits_TE + by_modality(step.is_vision_T, bias_2E)

    def _without_modality(self, step: RouterInputs) -> tuple[Tensor, Tensor]:
        """The token's part of the logits, and the part that each modality adds."""
        if self.form == "bias":
            return step.logits_TE, step.parameters["modality_bias"]
        if self.form == "gate":
            text_TE, vision_TE = (
                linear(step.hidden_TD.float(), weight) for weight in step.parameters["modality_weight"]
            )
            own_TE = torch.where(step.is_vision_T[:, None], vision_TE, text_TE)
            return own_TE, step.parameters["modality_bias"]
        weight, embedding = step.parameters["weight"], step.parameters["modality_embedding"]
        hidden_size = step.hidden_TD.shape[1]
        modality_part = weight if self.form == "add" else weight[:, hidden_size:]
        return linear(step.hidden_TD.float(), weight[:, :hidden_size]), linear(embedding, modality_part)
