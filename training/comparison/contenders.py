"""The routers that are compared. An entry of ROUTERS adds one.

Each is a row of the table. Those of SEEDED are trained three times, the others once.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from prismoe.training.data.questions import TEMPLATES
from prismoe.training.router_settings import RouterSettings


class Trained(BaseModel):
    """A router that trains with its experts, from the same dense model as all others."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    routing: Mapping[str, Any]
    """The checkpoint's `prismoe_routing`."""
    experts: int = 4
    expert_width: int | None = None
    """As wide as a dense layer where not given."""
    seed: int = 0
    training: RouterSettings | None = None
    """None: as the policy's paper says."""


class Calibrated(BaseModel):
    """A router that `prismoe calibrate` fits to the trained BASELINE."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    options: tuple[str, ...]


Contender = Trained | Calibrated

BASELINE = "topk"
_TOP_2 = {"top_k": 2, "norm_topk_prob": True}
_TOPK = {"policy": "topk", **_TOP_2}
_LTDR = {"policy": "ltdr", **_TOP_2, "tail_experts": 4}
_BY_MODALITY = RouterSettings(balance="modality")
_CONDITIONED = {"policy": "modality_conditioned", **_TOP_2}
_GROUPS = {"policy": "modality_groups"}
_HALF_WIDTH = 384

ROUTERS: dict[str, Contender] = {
    BASELINE: Trained(routing=_TOPK),
    "topk, no balance": Trained(routing=_TOPK, training=RouterSettings(balance="none")),
    "topk, text balance": Trained(routing=_TOPK, training=RouterSettings(balance="text")),
    "topk, vision balance": Trained(routing=_TOPK, training=RouterSettings(balance="vision")),
    "topk, modality balance": Trained(routing=_TOPK, training=_BY_MODALITY),
    "topk, utilisation floor": Trained(
        routing=_TOPK, training=RouterSettings(balance="none", utilisation_floor=0.5)
    ),
    "topk, entropy floor": Trained(routing=_TOPK, training=RouterSettings(balance="none", entropy_floor=1.5)),
    "topk, z-loss": Trained(routing=_TOPK, training=RouterSettings(z_loss=True)),
    "topk, STGC": Trained(routing=_TOPK, training=RouterSettings(conflict=True)),
    "topk, modality contrast": Trained(routing=_TOPK, training=RouterSettings(modality_contrast=True)),
    "ltdr": Trained(routing=_LTDR),
    "ltdr, balance of all": Trained(routing=_LTDR, training=RouterSettings()),
    "ltdr, batch mean": Trained(routing=_LTDR, training=RouterSettings(balance="text", tail_mean="batch")),
    "ltdr, heads": Trained(routing={**_LTDR, "selection": "head"}),
    "gmm": Trained(routing={"policy": "gmm", "top_k": 2}),
    "gmm, no reactivation": Trained(
        routing={"policy": "gmm", "top_k": 2},
        training=RouterSettings(balance="none", reactivation=False),
    ),
    "modality_conditioned, add": Trained(routing=_CONDITIONED),
    "modality_conditioned, add, modality balance": Trained(routing=_CONDITIONED, training=_BY_MODALITY),
    "modality_conditioned, gate": Trained(routing={**_CONDITIONED, "form": "gate"}),
    "modality_conditioned, concat": Trained(routing={**_CONDITIONED, "form": "concat"}),
    "modality_conditioned, bias": Trained(routing={**_CONDITIONED, "form": "bias"}),
    "modality_groups, v2Top1-t2Top1": Trained(routing=_GROUPS),
    "modality_groups, v2Top1-t2Top1-DAR": Trained(routing=_GROUPS, training=RouterSettings(balance="text")),
    "modality_groups, v2Top1-t2Top1-DAR-shared": Trained(
        routing={**_GROUPS, "shared_experts": 1}, experts=5, training=RouterSettings(balance="text")
    ),
    "modality_groups, v4Top2-t4Top2": Trained(
        routing={**_GROUPS, "vision_experts": 2, "text_experts": 2, "norm_topk_prob": True},
        experts=8,
        expert_width=_HALF_WIDTH,
    ),
    "top_any": Trained(routing={"policy": "top_any"}),
    "cosine": Trained(routing={"policy": "cosine", **_TOP_2, "latent": 2}),
    "bias_corrected": Trained(routing={"policy": "bias_corrected", **_TOP_2}),
    "fine_grained": Trained(
        routing={"policy": "fine_grained", "top_k": 3, "norm_topk_prob": True},
        experts=8,
        expert_width=_HALF_WIDTH,
    ),
    "task": Trained(routing={"policy": "task", **_TOP_2, "tasks": len(TEMPLATES)}),
    "cluster": Trained(routing={"policy": "cluster", **_TOP_2, "clusters": 16}),
    "instruction": Trained(routing={"policy": "instruction", **_TOP_2}),
    "equiroute": Calibrated(options=("--policy", "equiroute")),
    "entropy": Calibrated(options=("--policy", "entropy", "--mean-experts", "2")),
    "dual_threshold": Calibrated(options=("--policy", "dual_threshold", "--skip", "0.25")),
}

SEEDED = (
    BASELINE,
    "topk, text balance",
    "topk, modality balance",
    "ltdr",
    "ltdr, balance of all",
    "gmm",
    "gmm, no reactivation",
    "modality_conditioned, add, modality balance",
)
SEEDS = {1: "second seed", 2: "third seed"}


def runs(name: str) -> dict[str, Contender]:
    """A router's runs: by its own name with the first seed, and by further names with the others."""
    contender = ROUTERS[name]
    if not isinstance(contender, Trained) or name not in SEEDED:
        return {name: contender}
    further = {
        f"{name}, {which}": contender.model_copy(update={"seed": seed}) for seed, which in SEEDS.items()
    }
    return {name: contender, **further}


CONTENDERS: dict[str, Contender] = {
    run: contender for name in ROUTERS for run, contender in runs(name).items()
}
"""Every run by its name."""
