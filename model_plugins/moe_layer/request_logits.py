"""The router logits of whole requests, in buffers that CUDA graphs can read.

Policies that decide once per request (`RequestPolicy`) need each token's request, the request's label and its
instruction. The model doesn't get these; vLLM's runner has them (`watch_steps`).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from vllm.logger import init_logger
from vllm.utils.torch_utils import async_tensor_h2d

from prismoe.model_plugins.routing.request_policy import NO_TASK, RequestPolicy, Requests
from prismoe.model_plugins.vllm_seams.engine.step_watch import StepRequests

TASK = "task"
"""The key of a request's label in its `vllm_xargs` (offline: `SamplingParams.extra_args`)."""

logger = init_logger("vllm.prismoe.requests")


class _Layer(NamedTuple):
    policy: RequestPolicy
    num_experts: int
    parameters: Mapping[str, Tensor]


class RequestGate(nn.Module):
    """Gives each token its request's logits in one layer, as a gate gives a hidden state's logits."""

    def __init__(self, logits_RE: Tensor, request_T: Tensor) -> None:
        super().__init__()
        self.register_buffer("logits_RE", logits_RE, persistent=False)
        self.register_buffer("request_T", request_T, persistent=False)

    def forward(self, hidden_TD: Tensor) -> Tensor:
        logits_TE: Tensor = self.logits_RE[self.request_T[: len(hidden_TD)]]  # type: ignore[index]
        return logits_TE


class RequestLogits(nn.Module):
    """Each request's logits by layer. `request_T` holds the request of each token of the running step.

    A request's logits are computed once, when the runner first has it. The rows follow the step's requests.
    """

    request_T: Tensor
    logits_RLE: Tensor

    def __init__(self, experts_by_layer: Mapping[int, int], request_T: Tensor, max_requests: int) -> None:
        super().__init__()
        widest = max(experts_by_layer.values())
        logits_RLE = torch.zeros(max_requests, len(experts_by_layer), widest, dtype=torch.float32)
        self.register_buffer("logits_RLE", logits_RLE, persistent=False)
        self.register_buffer("request_T", request_T, persistent=False)
        self._experts_by_layer = experts_by_layer
        self._layers: list[_Layer] = []
        self._logits_of: dict[str, Tensor] = {}
        self._rows: Sequence[str] = ()

    def add_layer(self, layer: int, policy: RequestPolicy, parameters: Mapping[str, Tensor]) -> RequestGate:
        """Make the gate of a layer; call this in the layers' order."""
        num_experts = self._experts_by_layer[layer]
        gate = RequestGate(self.logits_RLE[:, len(self._layers), :num_experts], self.request_T)
        self._layers.append(_Layer(policy, num_experts, parameters))
        return gate

    def begin_step(self, step: StepRequests, embed: Callable[[Tensor], Tensor]) -> None:
        """Prepare for the step that is about to run. `embed` gives the embeddings of token ids, `[T, D]`."""
        if step.new:
            self._logits_of = {name: own for name, own in self._logits_of.items() if name in step.known}
        for request in step.new:
            self._logits_of[request.req_id] = self._logits(request, embed)
        if step.new or step.names != self._rows:
            rows = [self._logits_of[name] for name in step.names]
            self.logits_RLE[: len(rows)].copy_(torch.stack(rows))
            self._rows = step.names

    def _logits(self, request: Any, embed: Callable[[Tensor], Tensor]) -> Tensor:
        """A new request's logits by layer, `[L, E]`."""
        requests = Requests(
            async_tensor_h2d([self._task(request)], device=self.request_T.device),
            self._instruction(request, embed)[None],
        )
        logits_LE = torch.zeros_like(self.logits_RLE[0])
        for row_E, layer in zip(logits_LE, self._layers, strict=True):
            logits_RE = layer.policy.request_logits(requests, layer.parameters, layer.num_experts)
            row_E[: layer.num_experts] = logits_RE[0]
        return logits_LE

    def _task(self, request: Any) -> int:
        given = ((request.sampling_params and request.sampling_params.extra_args) or {}).get(TASK)
        if given is None:
            return NO_TASK
        if type(given) is not int or given < 0:
            logger.warning("A request's task is ignored: it must be a whole number, 0 or more.")
            return NO_TASK
        return given

    def _instruction(self, request: Any, embed: Callable[[Tensor], Tensor]) -> Tensor:
        """The mean embedding of all tokens of the prompt except its images', `[D]`."""
        is_text = np.ones(len(request.prompt_token_ids), dtype=bool)
        for image in request.mm_features:
            start = image.mm_position.offset
            is_text[start : start + image.mm_position.length] = False
        text = np.array(request.prompt_token_ids, dtype=np.int64)[is_text]
        # Without text, any one token gives the shape: its weight is 0.
        ids = text if len(text) else np.zeros(1, dtype=np.int64)
        embeds_TD = embed(async_tensor_h2d(ids, device=self.request_T.device)).float()
        return embeds_TD.mean(dim=0) * bool(len(text))
