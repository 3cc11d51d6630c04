"""Serve a contender beside the baseline, ask it the exam, and time both."""

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prismoe.kernels.balance import variation
from prismoe.kernels.routing import PADDING, routing_entropy
from prismoe.training.comparison.measured import ContenderScores
from prismoe.training.comparison.prefill import PICTURES, prefill_ratio
from prismoe.training.data.cases import Exam
from prismoe.training.losses import chosen_experts
from prismoe.training.model.moe_llava import LayerDecision
from prismoe.training.scores.evaluate import Asker
from prismoe.training.scores.measure import experts_per_token, serving
from prismoe.training.scores.score import Server, ask_all


def measure(folder: Path, baseline_url: str, exam: Exam) -> ContenderScores:
    """Everything of one contender: what the servers say, and of the questions for a name what the training
    model knows besides.
    """
    with serving(str(folder), None) as url:
        server = Server(url)
        replies = ask_all(server, exam, with_tasks=_knows_tasks(server.call("/v1/routing")))
        time.sleep(0.5)  # The server tells a reading of the last half second.
        load = server.call("/v1/routing/load")
        prefill = prefill_ratio(url, baseline_url, list(exam.png.values())[:PICTURES])
    experts = experts_per_token(load)
    asker = Asker(folder)
    routings, top_k = asker.routings(exam), asker.model.config.top_k
    ks = [moe.policy.model_dump().get("top_k", top_k) for moe in asker.model.moe_layers]
    load_LE = np.array(load["expert_tokens"]).sum(axis=1)
    return ContenderScores(
        right=[case.answer == reply.strip() for case, reply in zip(exam.cases, replies, strict=True)],
        vision_experts=experts["image"],
        text_experts=experts["text"],
        load_variation=statistics.mean(variation(load_E) for load_E in load_LE),
        first_choices_variation=first_choices_variation(routings, ks),
        entropy_bits=entropy_bits(routings),
        prefill=prefill,
    )


def _knows_tasks(routing: Mapping[str, Any]) -> bool:
    return all("tasks" in layer["policy"] for layer in routing["layers"])


def entropy_bits(routings: Sequence[LayerDecision]) -> float:
    """The mean entropy of the router's probabilities, over the layers and the tokens. Servers tell it of no
    `gmm` and `top_any`, so the training model does.
    """
    entropies = [
        routing_entropy(routing.probs_TE)[routing.segment_T != PADDING].mean() for routing in routings
    ]
    return torch.stack(entropies).mean().item() / math.log(2)


def first_choices_variation(routings: Sequence[LayerDecision], ks: Sequence[int]) -> float:
    """CV_mean of each layer's first k choices. Tokens that use all experts would hide how uneven those are.

    A server counts uses alone, so the training model tells it, too. Shared experts, which no token chooses,
    are left out.
    """
    return statistics.mean(
        variation(_first_choices(routing, k)) for routing, k in zip(routings, ks, strict=True)
    )


def _first_choices(routing: LayerDecision, k: int) -> NDArray[np.int64]:
    """How many tokens have each expert among their first k choices, `[E]` without shared ones."""
    chosen_among = routing.probs_TE.shape[1]
    slots = routing.step.num_experts - chosen_among + k  # shared experts come first
    first = replace(
        routing, experts_TA=routing.experts_TA[:, :slots], weights_TA=routing.weights_TA[:, :slots]
    )
    chosen_TE = chosen_experts(first)[routing.segment_T != PADDING, :chosen_among]
    return chosen_TE.sum(dim=0).long().numpy()
