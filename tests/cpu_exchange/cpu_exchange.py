"""A plugin of vLLM's for tests: data-parallel engines of a MoE model exchange their tokens on CPU.

vLLM 0.32 has these two functions only for GPUs, and prismoe refuses such engines on CPU. vLLM loads this
plugin in each of its processes that has this folder on its PYTHONPATH.
"""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, distributed
from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator

from prismoe.model_plugins.worker import engine_checks


def all_gatherv(
    communicator: CpuCommunicator, input_: Tensor | list[Tensor], dim: int, sizes: list[int]
) -> Tensor | list[Tensor]:
    """The rows of all ranks, in the order of the ranks. Rank r has `sizes[r]` rows."""
    if isinstance(input_, list):
        return [gathered(communicator, rows_TX, sizes) for rows_TX in input_]
    return gathered(communicator, input_, sizes)


def gathered(communicator: CpuCommunicator, rows_TX: Tensor, sizes: list[int]) -> Tensor:
    """Gather over Gloo, which needs the same number of rows from each rank: pad to the largest number."""
    sent = rows_TX.new_zeros(max(sizes), *rows_TX.shape[1:])
    sent[: len(rows_TX)] = rows_TX
    received = [torch.empty_like(sent) for _ in sizes]
    distributed.all_gather(received, sent, group=communicator.device_group)
    return torch.cat([rows[:size] for rows, size in zip(received, sizes, strict=True)])


def reduce_scatterv(communicator: CpuCommunicator, input_: Tensor, dim: int, sizes: list[int]) -> Tensor:
    """This rank's rows of the sum over all ranks."""
    total = input_.clone()
    distributed.all_reduce(total, group=communicator.device_group)
    return total.split(sizes)[communicator.rank_in_group]


def register() -> None:
    """Give vLLM the functions, and have prismoe check an engine as if it were on a GPU."""
    communicator: Any = CpuCommunicator
    communicator.all_gatherv, communicator.reduce_scatterv = all_gatherv, reduce_scatterv
    checks: Any = engine_checks
    checks.current_platform = SimpleNamespace(is_cpu=lambda: False)
