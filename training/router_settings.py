"""What a router trains with beside the answers' loss."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class RouterSettings(BaseModel):
    """The losses and rules of one run. Given nothing, they are MoE-LLaVA's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    balance: Literal["all", "text", "vision", "modality", "none"] = "all"
    """Whose load is balanced: that of all tokens (LTDR, Eq. 8), of text alone (LTDR, Eq. 10), of vision alone
    (LTDR, Table 3, "- LLB"), of each modality by itself, or nobody's.
    """
    z_loss: bool = False
    """Keep the router's logits small (ST-MoE, Eq. 5)."""
    conflict: bool = False
    """Send tokens away from experts whose other tokens pull the other way (STGC)."""
    modality_contrast: bool = False
    """Keep the modalities' routing apart (EquiRoute's MCR)."""
    utilisation_floor: float = Field(default=0, ge=0, le=1)
    """The least share of its fair share that each expert is to get; 0: none."""
    entropy_floor: float = Field(default=0, ge=0)
    """The least routing entropy of a token, in bits; 0: none."""
    diversity: bool = False
    """Of `top_any`: keep the experts' embeddings apart (DynMoE, Eqs. 7 and 8)."""
    reactivation: bool = True
    """Of `gmm`: pull slow components to the tokens (IDA-MoE, Eqs. 22 and 23)."""
    tail_mean: Literal["image", "batch"] = "image"
    """Of `ltdr`: over whose RPV the mean of Eq. 11 is taken. "image" is as it serves; "batch" is over all of
    the batch's images together, as the paper says that it trains (Sec. 4.1).
    """

    def check(self, policy: str) -> None:
        """Raise ValueError with a sentence where a choice means nothing to the policy."""
        has_logits = policy not in ("gmm", "top_any")
        compares_all = has_logits and policy != "modality_groups"
        choices = [
            ("diversity", self.diversity, policy == "top_any"),
            ("reactivation false", not self.reactivation, policy == "gmm"),
            ("tail_mean batch", self.tail_mean == "batch", policy == "ltdr"),
            ("z_loss", self.z_loss, has_logits),
            ("conflict", self.conflict, compares_all),
            ("modality_contrast", self.modality_contrast, compares_all),
        ]
        for name, is_chosen, fits in choices:
            if is_chosen and not fits:
                raise ValueError(f"{name} means nothing to a router of {policy}: leave it out.")


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
