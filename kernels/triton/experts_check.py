"""Compares ragged experts as a grouped product with plain PyTorch, on small steps."""

import torch
from torch import Tensor
from torch.nn.functional import gelu, silu

from prismoe.kernels.triton.experts import Activation, grouped_experts, workspace_rows

HIDDEN, WIDTH, SLOTS = 128, 192, 9


def check_grouped_experts(
    device: torch.device | str, dtype: torch.dtype, experts: int, is_gated: bool
) -> None:
    """Run a step with each size of tile. Raises AssertionError where plain PyTorch gives another result.

    Experts without a gate have GELU and biases, as Phi's do.
    """
    w13 = _random(device, dtype, experts, (1 + is_gated) * WIDTH, HIDDEN)
    w2 = _random(device, dtype, experts, HIDDEN, WIDTH)
    b13, b2 = None, None
    if not is_gated:
        b13, b2 = w13[:, :, 0] * HIDDEN**0.5, w2[:, :, 0] * WIDTH**0.5
    activation: Activation = "silu" if is_gated else "gelu_tanh"
    for tokens in (20, 4 * experts + 20):
        hidden_TD = _random(device, dtype, tokens, HIDDEN) * HIDDEN**0.5
        order = torch.arange(tokens * SLOTS, device=device).view(tokens, SLOTS)
        experts_TA = (order * 7 % experts).int()
        weights_TA = torch.where(order % 5 < 2, (order % 3).float() / 3, 0.0)
        workspace = hidden_TD.new_empty(workspace_rows(tokens, SLOTS, 16 * SLOTS), HIDDEN + WIDTH)
        output_TD = torch.empty_like(hidden_TD)
        grouped_experts(hidden_TD, weights_TA, experts_TA, w13, w2, b13, b2, activation, workspace, output_TD)
        expected_TD = _plain(hidden_TD, weights_TA, experts_TA, w13, w2, b13, b2)
        torch.testing.assert_close(output_TD.float(), expected_TD, atol=2e-2, rtol=2e-2)


def _plain(
    hidden_TD: Tensor,
    weights_TA: Tensor,
    experts_TA: Tensor,
    w13: Tensor,
    w2: Tensor,
    b13: Tensor | None,
    b2: Tensor | None,
) -> Tensor:
    output_TD = torch.zeros_like(hidden_TD, dtype=torch.float32)
    for expert in range(len(w2)):
        weight_T = torch.where(experts_TA == expert, weights_TA, 0).sum(dim=1)
        up_TF = hidden_TD.float() @ w13[expert].float().T
        if b13 is None or b2 is None:
            gate_TF, up_TF = up_TF.chunk(2, dim=1)
            one_TD = (silu(gate_TF) * up_TF) @ w2[expert].float().T
        else:
            up_TF = gelu(up_TF + b13[expert].float(), approximate="tanh")
            one_TD = up_TF @ w2[expert].float().T + b2[expert].float()
        output_TD += weight_T[:, None] * one_TD
    return output_TD


def _random(device: torch.device | str, dtype: torch.dtype, *shape: int) -> Tensor:
    # Explicit device and dtype: vLLM changes torch's defaults while it loads a model.
    generator = torch.Generator(device="cpu").manual_seed(len(shape))
    values = torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32)
    return (values * shape[-1] ** -0.5).to(device=device, dtype=dtype)
