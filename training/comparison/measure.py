"""Serve a contender beside the baseline, ask it the exam, and time both."""

import json
import math
import statistics
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prismoe.kernels.balance import variation
from prismoe.kernels.routing import PADDING, routing_entropy
from prismoe.training.comparison.measured import ContenderScores
from prismoe.training.comparison.prefill import PICTURES, prefill_ratio
from prismoe.training.data.cases import Exam
from prismoe.training.scores.evaluate import Asker
from prismoe.training.scores.measure import experts_per_token, serving
from prismoe.training.scores.score import Server, ask_all


def measure(folder: Path, baseline_url: str, exam: Exam) -> ContenderScores:
    """Everything of one contender. All but the entropy is what the servers say."""
    with serving(str(folder), None) as url:
        replies = ask_all(Server(url), exam, with_tasks=_knows_tasks(_read(f"{url}/v1/routing")))
        time.sleep(0.5)  # The server tells a reading of the last half second.
        load = _read(f"{url}/v1/routing/load")
        prefill = prefill_ratio(url, baseline_url, list(exam.png.values())[:PICTURES])
    experts = experts_per_token(load)
    load_LE = np.array(load["expert_tokens"]).sum(axis=1)
    return ContenderScores(
        right=[case.answer == reply.strip() for case, reply in zip(exam.cases, replies, strict=True)],
        vision_experts=experts["image"],
        text_experts=experts["text"],
        load_variation=statistics.mean(variation(load_E) for load_E in load_LE),
        entropy_bits=entropy_bits(folder, exam),
        prefill=prefill,
    )


def _knows_tasks(routing: Mapping[str, Any]) -> bool:
    return all("tasks" in layer["policy"] for layer in routing["layers"])


def _read(url: str) -> Any:
    with urllib.request.urlopen(url) as response:
        return json.load(response)


@torch.inference_mode()
def entropy_bits(folder: Path, exam: Exam) -> float:
    """The mean entropy of the router's probabilities, over the layers and the tokens of every drawing's
    question for a name. Servers tell it of no `gmm` and `top_any`, so the training model does.
    """
    entropies = [
        routing_entropy(routing.probs_TE)[routing.segment_T != PADDING].mean()
        for routing in Asker(folder).routings(exam)
    ]
    return torch.stack(entropies).mean().item() / math.log(2)
