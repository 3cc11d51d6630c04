"""What a router trains with beside the answers' loss."""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class RouterSettings(BaseModel):
    """The losses and rules of one run. Given nothing, they are MoE-LLaVA's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    balance: Literal["all", "text", "modality", "none"] = "all"
    """Whose load is balanced: that of all tokens (LTDR, Eq. 8), of text alone (LTDR, Eq. 10), of each
    modality by itself, or nobody's.
    """
    diversity: bool = False
    """Of `top_any`: keep the experts' embeddings apart (DynMoE, Eqs. 7 and 8)."""
    reactivation: bool = True
    """Of `gmm`: pull slow components to the tokens (IDA-MoE, Eqs. 22 and 23)."""
    tail_mean: Literal["image", "batch"] = "image"
    """Of `ltdr`: over whose RPV the mean of Eq. 11 is taken. "image" is as it serves; "batch" is over all of
    the batch's images together, as the paper says that it trains (Sec. 4.1).
    """


_UNBALANCED = RouterSettings(balance="none")
_PUBLISHED = {
    "ltdr": RouterSettings(balance="text"),
    "modality_groups": RouterSettings(balance="modality"),
    "top_any": RouterSettings(balance="none", diversity=True),
    "bias_corrected": _UNBALANCED,
    "gmm": _UNBALANCED,
    "cluster": _UNBALANCED,
    "instruction": _UNBALANCED,
}


def published(policy: str) -> RouterSettings:
    """How the paper of a policy trains it. `cluster` and `instruction` are without balance in LTDR, App. A.3;
    a policy that isn't named here balances its load as MoE-LLaVA does.
    """
    return _PUBLISHED.get(policy, RouterSettings())
