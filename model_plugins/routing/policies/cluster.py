"""`cluster`: similar instructions share experts (LTDR, App. A.3, CLUSTER; MoCLE, arXiv 2312.12379)."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field
from torch import Tensor
from torch.nn.functional import linear

from prismoe.kernels.routing import ranked_experts
from prismoe.model_plugins.routing.request_policy import RequestPolicy, Requests


class Cluster(RequestPolicy):
    """Top-k of a gate that sees the learned embedding of the cluster nearest to the instruction.

    The papers cluster instructions by k-means over a sentence encoder's embeddings. Here the mean embedding
    of the instruction's tokens replaces that encoder, so that a checkpoint needs no second model; the
    distance is Euclidean, as in k-means.
    """

    policy: Literal["cluster"] = "cluster"
    clusters: int = Field(default=128, ge=1)

    def parameters(self, hidden_size: int, num_experts: int) -> Mapping[str, tuple[int, ...]]:
        return {
            "centroids": (self.clusters, hidden_size),
            "cluster_embeddings": (self.clusters, hidden_size),
            "weight": (num_experts, hidden_size),
        }

    def request_logits(
        self, requests: Requests, parameters: Mapping[str, Tensor], num_experts: int
    ) -> Tensor:
        centroids = parameters["centroids"]
        # The largest x·c - |c|²/2 is the smallest |x - c|².
        nearness_RC = linear(requests.instruction_RD, centroids, -0.5 * centroids.square().sum(dim=-1))
        nearest_R1, _ = ranked_experts(nearness_RC, 1)
        return linear(parameters["cluster_embeddings"][nearest_R1[:, 0]], parameters["weight"])
