"""`topk`: the same number of experts for every token, as MoE-LLaVA routes (LTDR, Eqs. 6 and 7)."""

from typing import Literal

from prismoe.model_plugins.routing.policy import RouterInputs, Routing, TopKPolicy


class TopK(TopKPolicy):
    """Softmax over all experts, the k most probable, their probabilities renormalised or not."""

    policy: Literal["topk"] = "topk"

    def route(self, step: RouterInputs) -> Routing:
        return self.top_k_of(step.logits_TE)
