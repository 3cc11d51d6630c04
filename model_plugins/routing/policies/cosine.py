"""`cosine`: similarity on a low-dimensional sphere (X-MoE, arXiv 2204.09179, Eqs. 5 and 6)."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field
from torch import Tensor
from torch.nn.functional import linear, normalize

from prismoe.model_plugins.routing.policy import LogitsPolicy, RouterInputs


class Cosine(LogitsPolicy):
    """Softmax over the cosine similarities of projected token and experts, divided by a learned temperature.

    The paper projects to half as many dimensions as there are experts; `latent` is their number.
    """

    policy: Literal["cosine"] = "cosine"
    latent: int = Field(default=16, ge=1)

    def gate_rows(self, num_experts: int) -> int:
        return 0

    def parameters(self, hidden_size: int, num_experts: int) -> Mapping[str, tuple[int, ...]]:
        return {
            "projection": (self.latent, hidden_size),
            "expert_embeddings": (num_experts, self.latent),
            "temperature": (1,),
        }

    def logits(self, step: RouterInputs) -> Tensor:
        own = step.parameters
        latent_TL = normalize(linear(step.hidden_TD.float(), own["projection"]), dim=-1)
        similarity_TE = linear(latent_TL, normalize(own["expert_embeddings"], dim=-1))
        return similarity_TE / own["temperature"]
