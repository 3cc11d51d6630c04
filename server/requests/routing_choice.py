"""Requests that choose their own routing: what they may choose, and how many do."""

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter

from prismoe.server.metrics.routes import ServedRouting

ANSWERING = (
    "/v1/chat/completions",
    "/v1/chat/completions/batch",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
)
"""The paths of requests that are answered by the model."""


def tasks(routing: ServedRouting) -> int:
    """How many tasks every layer that routes by them knows; 0 where none does."""
    return min(
        (layer.policy["tasks"] for layer in routing.layers if layer.policy["policy"] == "task"), default=0
    )


def task_fault(request: Mapping[str, Any], num_tasks: int) -> str | None:
    """What is wrong with the task that a request names; None where nothing is."""
    task = _named_task(request)
    if task is None:
        return None
    if num_tasks == 0:
        return "The routing policy in force knows no tasks: leave vllm_xargs.task out."
    if type(task) is not int or not 0 <= task < num_tasks:
        return f"vllm_xargs.task is {task!r}: give a whole number from 0 to {num_tasks - 1}."
    return None


def chooses_routing(request: Mapping[str, Any]) -> bool:
    """Whether a request says anything about its own routing."""
    images = request.get("mm_processor_kwargs")
    return _named_task(request) is not None or (isinstance(images, dict) and bool(images.get("routing")))


def _named_task(request: Mapping[str, Any]) -> Any:
    extra = request.get("vllm_xargs")
    return extra.get("task") if isinstance(extra, dict) else None


class RequestCounter:
    """Counts the requests that are answered, by whether they chose their own routing."""

    def __init__(self, registry: CollectorRegistry, model_name: str) -> None:
        counter = Counter(
            "prismoe_requests",
            "Requests answered, by who chose the routing: the server's default or the request.",
            ["routing", "model_name"],
            registry=registry,
        )
        self._by_default = counter.labels("default", model_name)
        self._by_request = counter.labels("request", model_name)

    def add(self, chose_routing: bool) -> None:
        """Count a request, which chose its own routing or not."""
        (self._by_request if chose_routing else self._by_default).inc()
