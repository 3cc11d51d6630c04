"""Runs vLLM's Triton experts without a GPU: its kernel in the interpreter, its CUDA ops in plain PyTorch.

On CPU vLLM imports placeholders instead of Triton, and has none of these ops. The ops here follow its source,
csrc/libtorch_stable/moe/moe_align_sum_kernels.cu. Memory that CUDA leaves unwritten is NaN or out of bounds.
"""

from collections.abc import Iterator

import pytest
import torch
import triton
from torch import Tensor
from vllm import _custom_ops
from vllm.model_executor.layers.fused_moe import fused_moe
from vllm.model_executor.layers.fused_moe.experts import triton_moe
from vllm.platforms import current_platform


@pytest.fixture
def triton_on_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Install the replacements for one test."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(fused_moe, "triton", triton)
    for module in (fused_moe, triton_moe):
        monkeypatch.setattr(module, "tl", triton.language)
    for name in ("write_zeros_to_output", "fused_moe_kernel"):
        kernel = getattr(fused_moe, name)
        constants = dict.fromkeys(kernel.__annotations__, triton.language.constexpr)
        monkeypatch.setattr(kernel, "__annotations__", constants)
        monkeypatch.setattr(fused_moe, name, triton.jit(kernel))
    current_platform.import_kernels()  # the activations' ops, which CPU has
    monkeypatch.setattr(_custom_ops, "moe_align_block_size", moe_align_block_size)
    monkeypatch.setattr(_custom_ops, "moe_sum", moe_sum)
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    yield
    torch.use_deterministic_algorithms(False)


def moe_align_block_size(
    topk_ids: Tensor,
    num_experts: int,
    block_size: int,
    sorted_token_ids: Tensor,
    expert_ids: Tensor,
    num_tokens_post_pad: Tensor,
    expert_map: Tensor | None = None,
    scatter_idx: Tensor | None = None,
) -> None:
    """Sort slots by expert into whole blocks, and drop ids that belong to no expert or are not mapped."""
    assert scatter_idx is None
    assert topk_ids.is_contiguous()
    sorted_token_ids.fill_(topk_ids.numel())
    expert_ids.fill_(-1)
    mapped = [_local(expert, num_experts, expert_map) for expert in topk_ids.flatten().tolist()]
    end = 0
    for expert in range(num_experts):
        slots = [slot for slot, local in enumerate(mapped) if local == expert]
        blocks = -(-len(slots) // block_size)
        sorted_token_ids[end : end + len(slots)] = torch.tensor(slots[::-1])  # CUDA's order is random
        expert_ids[end // block_size : end // block_size + blocks] = expert
        end += blocks * block_size
    num_tokens_post_pad[0] = end


def _local(expert: int, num_experts: int, expert_map: Tensor | None) -> int:
    if not 0 <= expert < num_experts:
        return -1
    return expert if expert_map is None else int(expert_map[expert])


def moe_sum(
    input: Tensor, output: Tensor, topk_ids: Tensor | None = None, expert_map: Tensor | None = None
) -> None:
    """Add up each token's slots in float32, without negative ids and ids that are not mapped."""
    sum_TD = torch.zeros_like(output, dtype=torch.float32)
    for token in range(input.shape[0]):
        for slot in range(input.shape[1]):
            if topk_ids is not None:
                assert expert_map is None or expert_map.dtype == torch.int32
                expert = int(topk_ids[token, slot])
                if expert < 0 or (expert_map is not None and expert_map[expert] < 0):
                    continue
            sum_TD[token] += input[token, slot].float()
    output.copy_(sum_TD)
