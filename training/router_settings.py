"""The settings of a router's training, in addition to the answers' loss."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class RouterSettings(BaseModel):
    """The losses and rules of one run. The defaults are MoE-LLaVA's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    balance: Literal["all", "text", "vision", "modality", "none"] = "all"
    """The tokens whose load is balanced: all (LTDR, Eq. 8), text (LTDR, Eq. 10), vision (LTDR, Table 3,
    "- LLB"), each modality separately, or none.
    """
    z_loss: bool = False
    """Keep the router's logits small (ST-MoE, Eq. 5)."""
    conflict: bool = False
    """Move tokens away from experts whose other tokens have opposite gradients (STGC)."""
    modality_contrast: bool = False
    """Keep the modalities' routing different (EquiRoute's MCR)."""
    utilisation_floor: float = Field(default=0, ge=0, le=1)
    """The part of its fair share that each expert should get at least. 0 switches this off."""
    entropy_floor: float = Field(default=0, ge=0)
    """The routing entropy that a token should have at least, in bits. 0 switches this off."""
    diversity: bool = False
    """For `top_any`: keep the experts' embeddings different (DynMoE, Eqs. 7 and 8)."""
    reactivation: bool = True
    """For `gmm`: pull slow components to the tokens (IDA-MoE, Eqs. 22 and 23)."""
    tail_mean: Literal["image", "batch"] = "image"
    """For `ltdr`: the tokens whose RPV the mean of Eq. 11 covers. "image" is those of each image, as in
    serving; "batch" is those of all images of the batch, as in the paper's training (Sec. 4.1).
    """

    def check(self, policy: str) -> None:
        """Raise ValueError if a setting has no meaning for the policy."""
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
                raise ValueError(f"{name} has no meaning for a router of {policy}: leave it out.")


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
    """The settings of the policy's paper.

    `cluster` and `instruction` have no balance loss in LTDR, App. A.3. Other policies have MoE-LLaVA's.
    """
    return _PUBLISHED.get(policy, RouterSettings())
