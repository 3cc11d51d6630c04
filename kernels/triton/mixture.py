"""GMM routing, after its encoder, in one Triton launch: `kernels.mixture` and a softmax, fused.

The (z - μ)²/σ² of each component are summed in float32: no large squares cancel, and rounding costs a log
density about 1e-6 of its terms. The plain form's product [z, -z²/2]·W needs float64 for that, which many GPUs
compute slowly; with L near 32 the sums are cheap, and never leave the registers.

Tested by Triton's interpreter and compiled ahead for five GPUs (`compile_ahead`); not yet run on a GPU.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

FEW_TOKENS = 1024
"""Up to this many tokens, each has a program of its own: in decode, that keeps more of the GPU busy."""
LOWEST = tl.constexpr(-1e38)
"""Below every log density; unlike infinities and NaN, two of them can be subtracted."""


@triton.jit(do_not_specialize=["T"])
def _best_experts(latent_ptr, log_mixing_ptr, means_ptr, log_variances_ptr, experts_ptr, weights_ptr, T,
                  K: tl.constexpr, C: tl.constexpr, M: tl.constexpr, L: tl.constexpr, BLOCK_T: tl.constexpr,
                  BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_L: tl.constexpr):  # fmt: skip
    """Writes experts and weights of a block of tokens; C = E · M components of a mixture."""
    token_T = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    inside_T = token_T < T
    mixture_K = tl.arange(0, BLOCK_K)
    inner_L = tl.arange(0, BLOCK_L)
    inside_LT = (inner_L < L)[:, None] & inside_T[None, :]
    latent_LT = tl.load(latent_ptr + token_T[None, :] * L + inner_L[:, None], inside_LT, 0.0)
    posterior_TK = tl.zeros([BLOCK_T, BLOCK_K], tl.float32)
    for mixture in tl.static_range(K):
        best_TC = tl.full([BLOCK_T, BLOCK_C], LOWEST, tl.float32)
        winner_TC = tl.zeros([BLOCK_T, BLOCK_C], tl.int32)
        sum_TC = tl.zeros([BLOCK_T, BLOCK_C], tl.float32)  # of densities, as multiples of the best one
        for first in range(0, C, BLOCK_C):
            component_C = first + tl.arange(0, BLOCK_C)
            row_C = mixture * C + component_C
            inside_LC = (inner_L < L)[:, None] & (component_C < C)[None, :]
            at_LC = row_C[None, :] * L + inner_L[:, None]
            log_variance_LC = tl.load(log_variances_ptr + at_LC, inside_LC, 0.0)
            log_mixing_C = tl.load(log_mixing_ptr + row_C, component_C < C, float("-inf"))
            # The extra dimension for tokens gives this the same layout as the sum below: fewer instructions.
            constant_TC = log_mixing_C[None, :] - 0.5 * tl.sum(log_variance_LC[:, None, :], 0)
            off_mean_LTC = latent_LT[:, :, None] - tl.load(means_ptr + at_LC, inside_LC, 0.0)[:, None, :]
            square_TC = tl.sum(off_mean_LTC * off_mean_LTC * tl.exp(-log_variance_LC)[:, None, :], 0)
            joint_TC = constant_TC - 0.5 * square_TC  # without L/2 · log 2π, which all components share
            joint_TC = tl.where(joint_TC > LOWEST, joint_TC, LOWEST)
            winner_TC = tl.where(joint_TC > best_TC, component_C[None, :], winner_TC)
            higher_TC = tl.maximum(best_TC, joint_TC)
            sum_TC = sum_TC * tl.exp(best_TC - higher_TC) + tl.exp(joint_TC - higher_TC)
            best_TC = higher_TC
        best_T = tl.max(best_TC, 1)
        winner_T = tl.min(tl.where(best_TC == best_T[:, None], winner_TC, C), 1)
        tl.store(experts_ptr + token_T * K + mixture, winner_T // M, inside_T)
        sum_T = tl.sum(sum_TC * tl.exp(best_TC - best_T[:, None]), 1)
        posterior_TK = tl.where((mixture_K == mixture)[None, :], (1.0 / sum_T)[:, None], posterior_TK)
    exp_TK = tl.where((mixture_K < K)[None, :], tl.exp(posterior_TK), 0.0)  # posteriors are at most 1
    weights_TK = exp_TK / tl.sum(exp_TK, 1)[:, None]
    inside_TK = inside_T[:, None] & (mixture_K < K)[None, :]
    tl.store(weights_ptr + token_T[:, None] * K + mixture_K[None, :], weights_TK, inside_TK)


def tiles(tokens: int, components: int, latent: int) -> dict[str, int]:
    """The sizes of the kernel's tiles: tokens, and components and dimensions in registers at once."""
    block_t, block_cl = (1, 4096) if tokens <= FEW_TOKENS else (8, 1024)
    block_l = triton.next_power_of_2(latent)
    block_c = min(triton.next_power_of_2(components), max(block_cl // block_l, 1))
    return {"BLOCK_T": block_t, "BLOCK_C": block_c, "BLOCK_L": block_l}


def mixture_router(
    latent_TL: Tensor, log_mixing_KEM: Tensor, means_KEML: Tensor, log_variances_KEML: Tensor
) -> tuple[Tensor, Tensor]:
    """Route T tokens by K mixtures (IDA-MoE, Eqs. 14 and 16 to 19); all tensors are contiguous and float32.

    Returns `experts_TK` (int32), the expert of each mixture's most probable component, and `weights_TK`
    (float32), a softmax over those components' posteriors. Of equal components, the one of the lower expert
    wins; where two are within float32's rounding, the plain form's float64 or a step of another size may
    choose the other. Padding may hold anything: a latent with NaN gets experts and weights, too.
    """
    (tokens, latent), (mixtures, experts, components) = latent_TL.shape, log_mixing_KEM.shape
    experts_TK = latent_TL.new_empty(tokens, mixtures, dtype=torch.int32)
    weights_TK = latent_TL.new_empty(tokens, mixtures)
    blocks = tiles(tokens, experts * components, latent)
    _best_experts[(triton.cdiv(tokens, blocks["BLOCK_T"]),)](
        latent_TL,
        log_mixing_KEM,
        means_KEML,
        log_variances_KEML,
        experts_TK,
        weights_TK,
        tokens,
        K=mixtures,
        C=experts * components,
        M=components,
        L=latent,
        BLOCK_K=triton.next_power_of_2(mixtures),
        **blocks,
    )
    return experts_TK, weights_TK
