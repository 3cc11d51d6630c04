"""Records the routing of one request's tokens, in the worker, step by step."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prismoe.model_plugins.moe_layer.model_routing import ModelRouting
from prismoe.model_plugins.moe_layer.step import RoutingStep
from prismoe.model_plugins.vllm_seams.engine.step_watch import StepRequests, watch_steps
from prismoe.model_plugins.vllm_seams.engine.vision_chunks import medium_of


class RequestRows(NamedTuple):
    """The request's tokens in one step: the step's rows, and the request's position of the first one."""

    rows: slice
    position: int

    @property
    def positions(self) -> range:
        """The position of each row."""
        return range(self.position, self.position + self.rows.stop - self.rows.start)


class Recorded(NamedTuple):
    """The decisions of the MoE layers for the request's n tokens in a step."""

    modality_T: Tensor
    experts_LTA: Tensor
    weights_LTA: Tensor
    count_LT: Tensor
    tail_LT: Tensor


class InspectionRecorder:
    """Records the request `request`, from the recorder's construction until `end`.

    vLLM adds its own suffix to a request's id. At most `most_tokens` tokens are kept. With `with_logits` the
    gates' logits are kept, too; only eager engines allow that.
    """

    def __init__(
        self, runner: Any, routing: ModelRouting, request: str, most_tokens: int, with_logits: bool
    ) -> None:
        self.request = request
        self._most_tokens = most_tokens
        self._routing = routing
        self._steps: list[RequestRows] = []
        self._recorded: list[Recorded] = []
        self._media: list[dict[str, Any]] = []
        self._logits: dict[int, list[Tensor]] = {}
        self._running: RequestRows | None = None
        self._unwatch = watch_steps(runner, self._begin_step)
        routing.step_watchers.append(self._end_step)
        if with_logits:
            for layer, router in routing.routers.items():
                self._logits[layer] = []
                router.observer = partial(self._keep_logits, layer)

    def end(self) -> None:
        """Stop recording, and restore runner and routers."""
        self._unwatch()
        self._routing.step_watchers.remove(self._end_step)
        for layer in self._logits:
            self._routing.routers[layer].observer = None

    def rows(self) -> dict[str, Any]:
        """The recording, as plain lists in the order of the request's positions.

        `media` are the request's images, videos and sounds. `layers` hold for each token its experts, best
        first, and their weights (None where the kernel does not give them), whether it was a tail token, and
        the gate's logits if they were kept.
        """
        positions = [position for step in self._steps for position in step.positions]
        # A preempted request computes positions again: its answer is based on the latest rows.
        order = [row for _, row in sorted({position: row for row, position in enumerate(positions)}.items())]
        names = self._routing.step.tokens.names
        modalities = _picked([step.modality_T for step in self._recorded], order)
        return {
            "positions": [positions[row] for row in order],
            "modalities": [names[modality] for modality in modalities],
            "media": self._media,
            "layers": [self._layer(place, layer, order) for place, layer in enumerate(self._routing.layers)],
        }

    def _layer(self, place: int, layer: int, order: Sequence[int]) -> Mapping[str, Any]:
        experts, weights, counts, tail = (
            _picked([step[part][place] for step in self._recorded], order)
            for part in range(1, len(Recorded._fields))
        )
        weighted = not any(math.isnan(share) for shares in weights for share in shares)
        ranked = [
            sorted(zip(of_token[:count], shares, strict=False), key=lambda pair: -pair[1] if weighted else 0)
            for of_token, shares, count in zip(experts, weights, counts, strict=True)
        ]
        return {
            "layer": layer,
            "experts": [[expert for expert, _ in pairs] for pairs in ranked],
            "weights": [[weight for _, weight in pairs] for pairs in ranked] if weighted else None,
            "tail": tail,
            "router_logits": _picked(kept, order) if (kept := self._logits.get(layer)) else None,
        }

    def _begin_step(self, step: StepRequests) -> None:
        self._running = None
        for new in step.new:
            if new.req_id.startswith(self.request) and not self._media:
                self._media = [_medium(feature) for feature in new.mm_features]
        kept = sum(len(rows.positions) for rows in self._steps)
        start = 0
        for request, count, position in zip(step.names, step.counts, step.computed, strict=True):
            if request.startswith(self.request) and kept < self._most_tokens:
                stop = start + min(count, self._most_tokens - kept)
                self._running = RequestRows(slice(start, stop), position)
            start += count

    def _end_step(self, step: RoutingStep) -> None:
        if self._running is None:
            return
        rows = self._running.rows
        of_step = Recorded(step.tokens.modalities, step.experts, step.weights, step.counts, step.tails)
        modality_T, *by_layer = of_step
        self._recorded.append(
            Recorded(modality_T[rows].clone(), *(part[:, rows].clone() for part in by_layer))
        )
        self._steps.append(self._running)

    def _keep_logits(
        self, layer: int, _hidden_TD: Tensor, logits_TE: Tensor, _experts_TA: Tensor, _weights_TA: Tensor
    ) -> None:
        if self._running is not None:
            self._logits[layer].append(logits_TE[self._running.rows].clone())


def _medium(feature: Any) -> dict[str, Any]:
    """One of a request's images, videos or sounds, from vLLM's `MultiModalFeatureSpec`."""
    position = feature.mm_position
    tokens = position.length if position.is_embed is None else int(position.is_embed.sum())
    return {
        "modality": medium_of(feature.modality),
        "offset": position.offset,
        "length": position.length,
        "grid": _grid(feature, tokens),
    }


def _grid(feature: Any, tokens: int) -> list[int] | None:
    """Frames, rows and columns of its tokens, if the processor gives them; a token covers several patches."""
    found = feature.data.get(f"{feature.modality}_grid_thw") if feature.data is not None else None
    if found is None:
        return None
    frames, rows, columns = (int(number) for number in found.data.flatten())
    merged = math.isqrt(frames * rows * columns // tokens)
    fits = frames * (rows // merged) * (columns // merged) == tokens
    return [frames, rows // merged, columns // merged] if fits else None


def _picked(parts: Sequence[Tensor], order: Sequence[int]) -> list[Any]:
    """The rows of the steps' tensors, in the given order."""
    return torch.cat([*parts])[list(order)].tolist() if parts else []
