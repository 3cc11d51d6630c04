"""Checks and counts requests that choose their own routing."""

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
"""The paths of requests that the model answers."""


def tasks(routing: ServedRouting) -> int:
    """Return the number of tasks that all layers with the task policy know; 0 if no layer has it."""
    return min(
        (layer.policy["tasks"] for layer in routing.layers if layer.policy["policy"] == "task"), default=0
    )


def task_fault(request: Mapping[str, Any], num_tasks: int) -> str | None:
    """Return a sentence if the request names a task that does not exist; otherwise None."""
    task = _named_task(request)
    if task is None:
        return None
    if num_tasks == 0:
        return "The routing policy in force has no tasks: leave vllm_xargs.task out."
    if type(task) is not int or not 0 <= task < num_tasks:
        return f"vllm_xargs.task is {task!r}: give a whole number from 0 to {num_tasks - 1}."
    return None


def chooses_routing(request: Mapping[str, Any]) -> bool:
    """Return whether a request chooses anything about its own routing."""
    images = request.get("mm_processor_kwargs")
    return _named_task(request) is not None or (isinstance(images, dict) and bool(images.get("routing")))


def _named_task(request: Mapping[str, Any]) -> Any:
    extra = request.get("vllm_xargs")
    return extra.get("task") if isinstance(extra, dict) else None


class RequestCounter:
    """Counts the answered requests, by whether they chose their own routing."""

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
        """Count an answered request."""
        (self._by_request if chose_routing else self._by_default).inc()
