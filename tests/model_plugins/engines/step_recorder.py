"""Records the routing of each computed token of each request in a vLLM worker."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from prismoe.model_plugins.vllm_seams.engine.step_watch import StepRequests, watch_steps


class Row(NamedTuple):
    """One computed token of a request, with its routing by MoE layer."""

    request: str
    position: int
    segment: int  # the image's index within the step, or TEXT
    experts: tuple[frozenset[int], ...]
    logits: np.ndarray  # [layers, E]


def start_recording_rows(worker: Any) -> None:
    """Runs in the worker: keep the rows of each step from now on."""
    model = worker.model_runner.get_model()
    worker.steps = []

    def begin(step: StepRequests) -> None:
        worker.steps.append({"requests": np.repeat(step.names, step.counts), "layers": []})

    def forward(input_ids: Tensor, positions: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        segments = model.routing.step.tokens.segments
        worker.steps[-1].update(positions=positions.clone(), segments=segments.clone())
        return forward_itself(input_ids, positions, *args, **kwargs)

    watch_steps(worker.model_runner, begin)
    forward_itself, model.forward = model.forward, forward
    for layer in model.experts_by_layer:
        _record_router(model.model.layers[layer].mlp.experts.router, worker)


def _record_router(router: Any, worker: Any) -> None:
    decide = router.decide

    def recorded(hidden: Tensor, logits: Tensor) -> tuple[Tensor, Tensor, bool]:
        weights, experts, all_used = decide(hidden, logits)
        worker.steps[-1]["layers"].append((logits.clone(), experts.clone(), weights.clone()))
        return weights, experts, all_used

    router.decide = recorded


def take_steps(worker: Any) -> list[dict[str, Any]]:
    """Runs in the worker: return the steps since the last call, as arrays."""
    steps, worker.steps = worker.steps, []
    return [
        {
            "requests": step["requests"].tolist(),
            "positions": step["positions"].numpy(),
            "segments": step["segments"].numpy(),
            "layers": [tuple(tensor.numpy() for tensor in layer) for layer in step["layers"]],
        }
        for step in steps
    ]


def rows(steps: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The computed tokens in the result of `take_steps`."""
    return [
        Row(
            request,
            int(step["positions"][index]),
            int(step["segments"][index]),
            tuple(
                frozenset(experts[index][weights[index] > 0].tolist())
                for _, experts, weights in step["layers"]
            ),
            np.stack([logits[index] for logits, _, _ in step["layers"]]),
        )
        for step in steps
        for index, request in enumerate(step["requests"])
    ]
