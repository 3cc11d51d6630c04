"""Records, in a vLLM worker, what each computed token of each request was routed to."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor


class Row(NamedTuple):
    """One computed token of a request, by MoE layer."""

    request: str
    position: int
    segment: int  # the image's index within the step, or TEXT
    experts: tuple[frozenset[int], ...]
    logits: np.ndarray  # [layers, E]


def start_recording_rows(worker: Any) -> None:
    """To be run in the worker: keep the rows of each step from now on."""
    runner, model = worker.model_runner, worker.model_runner.get_model()
    worker.steps = []
    step: dict[str, Any] = {}

    def forward(input_ids: Tensor, positions: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        step.update(positions=positions.clone(), segments=model.routing.segments.segments.clone(), layers=[])
        return forward_itself(input_ids, positions, *args, **kwargs)

    def execute_model(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        result = execute_model_itself(scheduler_output, *args, **kwargs)
        if scheduler_output.total_num_scheduled_tokens:
            requests = list(runner.input_batch.req_ids)
            counts = [scheduler_output.num_scheduled_tokens[request] for request in requests]
            worker.steps.append({"requests": np.repeat(requests, counts), **step})
        return result

    forward_itself, model.forward = model.forward, forward
    execute_model_itself, runner.execute_model = runner.execute_model, execute_model
    for layer in model.experts_by_layer:
        _record_router(model.model.layers[layer].mlp.experts.router, step)


def _record_router(router: Any, step: dict[str, Any]) -> None:
    decide = router.decide

    def recorded(hidden: Tensor, logits: Tensor) -> tuple[Tensor, Tensor, bool]:
        weights, experts, all_used = decide(hidden, logits)
        step["layers"].append((logits.clone(), experts.clone(), weights.clone()))
        return weights, experts, all_used

    router.decide = recorded


def take_steps(worker: Any) -> list[dict[str, Any]]:
    """To be run in the worker: the steps since the last call, as arrays."""
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
    """The computed tokens of `take_steps`."""
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
