"""Serve a run's checkpoint beside the baseline's, ask it the exams, and time both."""

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prismoe.kernels.balance import variation
from prismoe.training.comparison.measured import ContenderScores
from prismoe.training.comparison.prefill import PICTURES, prefill_ratio
from prismoe.training.comparison.routing_figures import (
    entropy_bits,
    first_choices_variation,
    layer_figures,
    top_ks,
)
from prismoe.training.data.cases import Exam
from prismoe.training.scores.evaluate import Asker
from prismoe.training.scores.measure import experts_per_token, serving
from prismoe.training.scores.score import Server, ask_all


def measure(folder: Path, baseline_url: str, exam: Exam, old_exam: Exam) -> ContenderScores:
    """Everything of one run: what the servers report, and what the training model knows besides."""
    began = time.monotonic()
    with serving(str(folder), None) as url:
        server = Server(url)
        with_tasks = _knows_tasks(server.call("/v1/routing"))
        replies, old_replies = (ask_all(server, each, with_tasks) for each in (exam, old_exam))
        time.sleep(0.5)  # The server reports a reading of the last half second.
        load = server.call("/v1/routing/load")
        prefill = prefill_ratio(url, baseline_url, list(old_exam.png.values())[:PICTURES])
    experts = experts_per_token(load)
    asker = Asker(folder)
    routings = asker.routings(exam)
    load_LE = np.array(load["expert_tokens"]).sum(axis=1)
    return ContenderScores(
        right=_right(exam, replies),
        old_right=_right(old_exam, old_replies),
        vision_experts=experts["image"],
        text_experts=experts["text"],
        load_variation=statistics.mean(variation(load_E) for load_E in load_LE),
        first_choices_variation=first_choices_variation(routings, top_ks(asker.model)),
        entropy_bits=entropy_bits(routings),
        perplexity=asker.perplexity(exam),
        layers=[layer_figures(routing) for routing in routings],
        prefill=prefill,
        seconds=time.monotonic() - began,
    )


def _right(exam: Exam, replies: Sequence[str]) -> list[bool]:
    return [case.answer == reply.strip() for case, reply in zip(exam.cases, replies, strict=True)]


def _knows_tasks(routing: Mapping[str, Any]) -> bool:
    return all("tasks" in layer["policy"] for layer in routing["layers"])
