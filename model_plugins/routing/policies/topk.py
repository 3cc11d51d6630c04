"""`topk`: the same number of experts for every token, as MoE-LLaVA routes (LTDR, Eqs. 6 and 7)."""

from typing import ClassVar, Literal

from torch import Tensor

from prismoe.model_plugins.routing.policy import LogitsPolicy, RouterInputs


class TopK(LogitsPolicy):
    """Softmax over all experts, the k most probable, their probabilities renormalised or not."""

    policy: Literal["topk"] = "topk"
    takes_any_gate: ClassVar[bool] = True
    gives_gate_confidence: ClassVar[bool] = True

    def logits(self, step: RouterInputs) -> Tensor:
        return step.logits_TE
