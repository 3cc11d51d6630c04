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
"""The margin of a forced expert's log score over all others, as in the released code."""


class Steering(BaseModel):
    """The steering of some of a layer's experts: `on` and `off` force them, `shift` adds to a log score."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    on: tuple[NonNegativeInt, ...] = ()
    off: tuple[NonNegativeInt, ...] = ()
    shift: dict[NonNegativeInt, FiniteFloat] = {}

    @property
    def experts(self) -> list[int]:
        """All named experts, once for each time that they are named."""
        return [*self.on, *self.off, *self.shift]

    @property
    def pushes(self) -> tuple[tuple[int, float], ...]:
        """The number that is added to each expert's log score; infinity forces the expert."""
        forced = [(expert, torch.inf) for expert in self.on], [(expert, -torch.inf) for expert in self.off]
        return (*forced[0], *forced[1], *self.shift.items())


class Steer(TopKPolicy):
    """Top-k of log scores, some of them replaced: for all tokens, for text tokens or for vision tokens.

    The released code (github.com/adobe-research/SteerMoE, src/modeling_vllm) replaces values of the gate's
    log-softmax: an expert that is on gets the token's largest value plus EPSILON, one that is off the
    smallest minus EPSILON. The model's gate then continues with the result, so that weights come from the
    replaced values. The code steers all tokens; steering by modality, and shifts, which are added first, are
    this policy's additions.

    Inferred for gates that the paper does not cover: for a sigmoid, its logarithm takes the place of the
    log-softmax; where a bias or groups rank the experts, those that are on rank first and those that are off
    last, whatever their bias and group; and where a gate with sigmoids does not renormalise, the weights have
    the sum that they would have over all experts without steering.
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
                raise ValueError(f"all and {name} name expert {named} more than once: name each expert once")
        return self

    def slots(self, num_experts: int) -> int:
        for own in (self.text, self.vision):
            experts = self.all.experts + own.experts
            if max(experts, default=0) >= num_experts:
                raise ValueError(f"steer names expert {max(experts)}: there are 0 to {num_experts - 1}.")
            on, off = len(self.all.on + own.on), len(self.all.off + own.off)
            if on > self.top_k:
                raise ValueError(f"steer has {on} experts on, and a token uses {self.top_k}: list fewer.")
            if num_experts - off < self.top_k:
                raise ValueError(
                    f"steer has {off} of {num_experts} experts off, and a token uses {self.top_k}: list "
                    "fewer."
                )
        return super().slots(num_experts)

    def route(self, step: RouterInputs) -> Routing:
        return top_k_routing(self._steered(step), self.top_k, self.norm_topk_prob)

    def fused_rule(self, step: RouterInputs) -> FusedRule:
        confidence = self._steered(step)
        return self.top_k_rule(confidence, confidence.scores_TE)

    def _steered(self, step: RouterInputs) -> Confidence:
        """The gate's confidence for the replaced log scores."""
        both = self.all.pushes
        pushes = both + self.text.pushes, both + self.vision.pushes
        if not any(pushes):
            return step.confidence
        logits_TE = step.confidence.logits_TE
        # A copy to the device in each step would delay it, and a CUDA graph can't contain one.
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
        scores_TE = scores_TE.clamp(
            min=torch.finfo(scores_TE.dtype).min
        )  # experts of other groups rank before those that are off
        scores_TE = torch.where(is_on_TE, scores_TE.amax(dim=-1, keepdim=True) + EPSILON, scores_TE)
        return Confidence(logits_TE, scores_TE.masked_fill(is_off_TE, -torch.inf))


def _table(
    pushes: tuple[tuple[tuple[int, float], ...], ...], num_experts: int, device: torch.device
) -> Tensor:
    """The numbers that are added to the log scores of text and of vision, `[2, E]`."""
    rows = [[dict(row).get(expert, 0.0) for expert in range(num_experts)] for row in pushes]
    return torch.tensor(rows, dtype=torch.float32, device=device)


_kept_table = cache(_table)
