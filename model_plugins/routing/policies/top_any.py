"""`top_any`: each expert takes the tokens above its own threshold (DynMoE, arXiv 2405.14297, Eqs. 2 to 6)."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import linear, normalize

from prismoe.kernels.routing import ranked_experts, use_first
from prismoe.model_plugins.routing.policy import RouterInputs, Routing, RoutingPolicy


class TopAny(RoutingPolicy):
    """All experts whose cosine similarity with the token exceeds their threshold, at equal weights.

    The paper compares the sigmoids of similarity and threshold; a sigmoid is increasing, so comparing the
    values themselves is the same. A token that exceeds no threshold gets the most similar expert, as in the
    paper's tests.
    """

    policy: Literal["top_any"] = "top_any"

    def slots(self, num_experts: int) -> int:
        return num_experts

    def gate_rows(self, num_experts: int) -> int:
        return 0

    def parameters(self, hidden_size: int, num_experts: int) -> Mapping[str, tuple[int, ...]]:
        return {"expert_embeddings": (num_experts, hidden_size), "thresholds": (num_experts,)}

    def similarity(self, step: RouterInputs) -> Tensor:
        """The cosine similarity of each token and expert, `[T, E]` (Eq. 2)."""
        embeddings_ED = normalize(step.parameters["expert_embeddings"], dim=-1)
        return linear(normalize(step.hidden_TD.float(), dim=-1), embeddings_ED)

    def route(self, step: RouterInputs) -> Routing:
        similarity_TE = self.similarity(step)
        passes_TE = similarity_TE > step.parameters["thresholds"]
        count_T = passes_TE.sum(dim=-1).clamp(min=1)
        behind_TE = torch.where(passes_TE, similarity_TE, similarity_TE - 4)  # a cosine is between -1 and 1
        experts_TA, _ = ranked_experts(behind_TE, step.num_experts)
        equal_TA = (1 / count_T)[:, None].expand(experts_TA.shape)
        return Routing.without_tail(*use_first(experts_TA, equal_TA, count_T), count_T, None)
