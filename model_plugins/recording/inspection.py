"""What the tokens of one request were routed to, recorded in the worker while it runs. Eager engines only."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prismoe.model_plugins.moe_layer.routed_model import ModalityRouting
from prismoe.model_plugins.moe_layer.router import PolicyRouter
from prismoe.model_plugins.vllm_seams.step_watch import StepRequests, watch_steps


class LayerRows(NamedTuple):
    """What one MoE layer did with the request's n tokens of a step."""

    experts_TA: Tensor
    weights_TA: Tensor
    count_T: Tensor
    tail_T: Tensor
    logits_TE: Tensor


class Step:
    """A step that holds tokens of the request: which rows of the step, from which position of the prompt."""

    def __init__(self, rows: slice, position: int) -> None:
        self.rows = rows
        self.positions = range(position, position + rows.stop - rows.start)
        self.is_vision_T: Tensor
        self.layers: dict[int, LayerRows] = {}


class InspectionRecorder:
    """Records the request `request`, from its construction until `end`.

    vLLM adds a suffix of its own to a request's id. Not more than `most_tokens` tokens are kept.
    """

    def __init__(self, runner: Any, routing: ModalityRouting, request: str, most_tokens: int) -> None:
        self.request = request
        self._most_tokens = most_tokens
        self._routing = routing
        self._steps: list[Step] = []
        self._running: Step | None = None
        self._unwatch = watch_steps(runner, self._begin_step)
        for layer, router in routing.routers.items():
            router.observer = partial(self._keep, layer, router)

    def end(self) -> None:
        """Leave runner and routers as they were."""
        self._unwatch()
        for router in self._routing.routers.values():
            router.observer = None

    def rows(self, with_logits: bool) -> dict[str, Any]:
        """What was recorded, as plain lists in the order of the request's positions.

        `layers` hold for each token its experts, best first, and as many weights; whether it was a tail
        token; and `with_logits` the gate's logits.
        """
        positions = [position for step in self._steps for position in step.positions]
        # A preempted request computes positions again: its latest rows are those that its answer rests on.
        order = [row for _, row in sorted({position: row for row, position in enumerate(positions)}.items())]
        return {
            "positions": [positions[row] for row in order],
            "is_vision": _picked([step.is_vision_T for step in self._steps], order),
            "layers": [self._layer(layer, order, with_logits) for layer in self._routing.routers],
        }

    def _layer(self, layer: int, order: Sequence[int], with_logits: bool) -> Mapping[str, Any]:
        fields = zip(*(step.layers[layer] for step in self._steps), strict=True)
        experts, weights, counts, tail, logits = (
            _picked(parts, order) for parts in (fields if self._steps else [[]] * 5)
        )
        return {
            "layer": layer,
            "experts": [row[:count] for row, count in zip(experts, counts, strict=True)],
            "weights": [row[:count] for row, count in zip(weights, counts, strict=True)],
            "tail": tail,
            "router_logits": logits if with_logits else None,
        }

    def _begin_step(self, step: StepRequests) -> None:
        self._running = None
        kept = sum(len(step.positions) for step in self._steps)
        start = 0
        for request, count, position in zip(step.names, step.counts, step.computed, strict=True):
            if request.startswith(self.request) and kept < self._most_tokens:
                stop = start + min(count, self._most_tokens - kept)
                self._running = Step(slice(start, stop), position)
                self._steps.append(self._running)
            start += count

    def _keep(
        self,
        layer: int,
        router: PolicyRouter,
        hidden_TD: Tensor,
        logits_TE: Tensor,
        experts_TA: Tensor,
        weights_TA: Tensor,
    ) -> None:
        step = self._running
        if step is None or layer in step.layers:
            return
        inputs = router.inputs(hidden_TD, logits_TE)
        decision = router.policy.route(inputs)
        parts = (experts_TA, weights_TA, decision.count_T, decision.tail_T, logits_TE)
        step.is_vision_T = inputs.is_vision_T[step.rows].clone()
        step.layers[layer] = LayerRows(*(part[step.rows].clone() for part in parts))


def _picked(parts: Sequence[Tensor], order: Sequence[int]) -> list[Any]:
    """The rows of the steps' tensors in this order."""
    return torch.cat([*parts])[list(order)].tolist() if parts else []
