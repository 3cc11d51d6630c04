"""`steer`: experts forced on or off, or their scores shifted, by modality (SteerMoE, arXiv 2509.09660)."""

from functools import cache
from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, FiniteFloat, NonNegativeInt, model_validator
from torch import Tensor

from prismoe.kernels.expert_load import Confidence
from prismoe.kernels.fused_rule import FusedRule
from prismoe.kernels.routing import by_modality
from prismoe.model_plugins.routing.policy import RouterInputs, Routing, TopKPolicy, top_k_routing

EPSILON = 0.01
"""How far a forced expert's log score is beyond all others', as in the released code."""


class Steering(BaseModel):
    """What is done to some experts of a layer: `on` and `off` are forced, `shift` adds to a log score."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    on: tuple[NonNegativeInt, ...] = ()
    off: tuple[NonNegativeInt, ...] = ()
    shift: dict[NonNegativeInt, FiniteFloat] = {}

    @property
    def experts(self) -> list[int]:
        """All of them, once for each time that they are named."""
        return [*self.on, *self.off, *self.shift]

    @property
    def pushes(self) -> tuple[tuple[int, float], ...]:
        """What each expert's log score is pushed by: infinity forces it."""
        forced = [(expert, torch.inf) for expert in self.on], [(expert, -torch.inf) for expert in self.off]
        return (*forced[0], *forced[1], *self.shift.items())


class Steer(TopKPolicy):
    """Top-k of log scores of which some are replaced: for all tokens, and for those of text and of vision.

    The released code (github.com/adobe-research/SteerMoE, src/modeling_vllm) takes the gate's log-softmax;
    an expert that is on gets the token's largest value plus EPSILON, one that is off the smallest minus
    EPSILON, and the model's gate goes on with what comes of it: weights are of the replaced values. It steers
    all tokens; by modality, and by shifts, which are added first, is of this policy alone.

    Inferred for gates that the paper does not have: a sigmoid's logarithm stands for the log-softmax; where
    a bias or groups rank the experts, those that are on rank first and those that are off last, whatever
    their bias and group; and where a gate of sigmoids does not renormalise, the weights sum to what they
    would over all experts without steering.
    """

    policy: Literal["steer"] = "steer"
    takes_any_gate: ClassVar[bool] = True
    all: Steering = Steering()
    text: Steering = Steering()
    vision: Steering = Steering()

    @model_validator(mode="after")
    def _check_once(self) -> "Steer":
        for name, own in (("text", self.text), ("vision", self.vision)):
            experts = self.all.experts + own.experts
            if twice := sorted({expert for expert in experts if experts.count(expert) > 1}):
                named = ", ".join(map(str, twice))
                raise ValueError(f"all and {name} name expert {named} more than once: do one thing to each")
        return self

    def slots(self, num_experts: int) -> int:
        for own in (self.text, self.vision):
            experts = self.all.experts + own.experts
            if max(experts, default=0) >= num_experts:
                raise ValueError(f"steer names expert {max(experts)}: there are 0 to {num_experts - 1}.")
            on, off = len(self.all.on + own.on), len(self.all.off + own.off)
            if on > self.top_k:
                raise ValueError(f"steer has {on} experts on, and a token uses {self.top_k}: have fewer on.")
            if num_experts - off < self.top_k:
                raise ValueError(
                    f"steer has {off} of {num_experts} experts off, and a token uses {self.top_k}: have "
                    "fewer off."
                )
        return super().slots(num_experts)

    def route(self, step: RouterInputs) -> Routing:
        return top_k_routing(self._steered(step), self.top_k, self.norm_topk_prob)

    def fused_rule(self, step: RouterInputs) -> FusedRule:
        confidence = self._steered(step)
        return self.top_k_rule(confidence, confidence.scores_TE)

    def _steered(self, step: RouterInputs) -> Confidence:
        """The confidence that the gate has in the replaced log scores."""
        both = self.all.pushes
        pushes = both + self.text.pushes, both + self.vision.pushes
        if not any(pushes):
            return step.confidence
        logits_TE = step.confidence.logits_TE
        # A copy to the device in each step would hold it up, and a CUDA graph can't hold one.
        table = _table if torch.compiler.is_compiling() else _kept_table
        pushes_2E = table(pushes, logits_TE.shape[1], logits_TE.device)
        push_TE = by_modality(step.is_vision_T, pushes_2E)
        is_on_TE, is_off_TE = push_TE == torch.inf, push_TE == -torch.inf
        logits_TE = torch.where(is_on_TE | is_off_TE, logits_TE, logits_TE + push_TE)
        highest_T1, lowest_T1 = logits_TE.amax(dim=-1, keepdim=True), logits_TE.amin(dim=-1, keepdim=True)
        logits_TE = torch.where(is_on_TE, highest_T1 + EPSILON, logits_TE)
        logits_TE = torch.where(is_off_TE, lowest_T1 - EPSILON, logits_TE)
        _, scores_TE = confidence = step.gate.confidence_in(logits_TE)
        if scores_TE is None:
            return confidence
        scores_TE = scores_TE.clamp(min=torch.finfo(scores_TE.dtype).min)  # other groups rank before off
        scores_TE = torch.where(is_on_TE, scores_TE.amax(dim=-1, keepdim=True) + EPSILON, scores_TE)
        return Confidence(logits_TE, scores_TE.masked_fill(is_off_TE, -torch.inf))


def _table(
    pushes: tuple[tuple[tuple[int, float], ...], ...], num_experts: int, device: torch.device
) -> Tensor:
    """What text's and vision's log scores are pushed by, `[2, E]`."""
    rows = [[dict(row).get(expert, 0.0) for expert in range(num_experts)] for row in pushes]
    return torch.tensor(rows, dtype=torch.float32, device=device)


_kept_table = cache(_table)
