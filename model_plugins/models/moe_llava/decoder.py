"""The parts of the decoders, on vLLM's layers: attention, dense feed-forward, blocks, the stack."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import pad
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.model_executor.layers.activation import SiluAndMul, get_act_fn
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
)
from vllm.model_executor.layers.rotary_embedding import get_rope
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.platforms import current_platform

from prismoe.model_plugins.models.moe_llava.families.family import DecoderFacts

SMALLEST_HEAD = 32
"""vLLM's attention kernels start at this head size; smaller heads are padded with zeros, which is exact."""


class DecoderAttention(nn.Module):
    """Causal attention with rotary embedding on a part of each head."""

    def __init__(self, vllm_config: VllmConfig, facts: DecoderFacts, prefix: str) -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        hidden, num_heads = config.hidden_size, config.num_attention_heads
        quant_config = vllm_config.quant_config
        head_size = hidden // num_heads
        self.qkv_proj = QKVParallelLinear(
            hidden,
            head_size,
            num_heads,
            facts.kv_heads,
            bias=facts.qkv_bias,
            quant_config=quant_config,
            prefix=f"{prefix}.qkv_proj",
        )
        self.o_proj = RowParallelLinear(
            hidden, hidden, bias=facts.output_bias, quant_config=quant_config, prefix=f"{prefix}.o_proj"
        )
        rotary = get_rope(head_size, max_position=facts.positions, rope_parameters=facts.rope)
        # vLLM's CPU kernel writes aligned vectors of 8. It writes too far where half of the rotated part is
        # no multiple of 8, and nothing at all where a head is no multiple of 8.
        overruns = current_platform.is_cpu() and (rotary.rotary_dim % 16 or head_size % 8)
        self.rotate: Callable[..., Any] = rotary.forward_native if overruns else rotary
        ranks = get_tensor_model_parallel_world_size()
        rank_heads, rank_kv_heads = num_heads // ranks, max(1, facts.kv_heads // ranks)
        self.head_size = head_size
        self.head_splits = [heads * head_size for heads in (rank_heads, rank_kv_heads, rank_kv_heads)]
        self.head_padding = max(0, SMALLEST_HEAD - head_size)
        self.attn = Attention(
            rank_heads,
            head_size + self.head_padding,
            head_size**-0.5,
            num_kv_heads=rank_kv_heads,
            cache_config=vllm_config.cache_config,
            quant_config=quant_config,
            prefix=f"{prefix}.attn",
        )

    def forward(self, positions_T: Tensor, hidden_TD: Tensor) -> Tensor:
        qkv, _ = self.qkv_proj(hidden_TD)
        query, key, value = qkv.split(self.head_splits, dim=-1)
        query, key = self.rotate(positions_T, query, key)
        if self.head_padding:
            query, key, value = (self._pad(heads) for heads in (query, key, value))
        attended = self.attn(query, key, value)
        if self.head_padding:
            attended = attended.unflatten(-1, (-1, self.attn.head_size))[..., : self.head_size].flatten(-2)
        output_TD: Tensor = self.o_proj(attended)[0]
        return output_TD

    def _pad(self, heads: Tensor) -> Tensor:
        return pad(heads.unflatten(-1, (-1, self.head_size)), (0, self.head_padding)).flatten(-2)


class BiasedMLP(nn.Module):
    """Phi's dense feed-forward layer: two biased layers around an activation."""

    def __init__(self, vllm_config: VllmConfig, width: int, activation: str, prefix: str) -> None:
        super().__init__()
        hidden, quant_config = vllm_config.model_config.hf_config.hidden_size, vllm_config.quant_config
        self.fc1 = ColumnParallelLinear(hidden, width, quant_config=quant_config, prefix=f"{prefix}.fc1")
        self.act = get_act_fn(activation)
        self.fc2 = RowParallelLinear(width, hidden, quant_config=quant_config, prefix=f"{prefix}.fc2")

    def forward(self, hidden_TD: Tensor) -> Tensor:
        hidden_TF, _ = self.fc1(hidden_TD)
        output_TD: Tensor = self.fc2(self.act(hidden_TF))[0]
        return output_TD


class GatedMLP(nn.Module):
    """The dense feed-forward layer of StableLM and Qwen: down(silu(gate(x)) · up(x)), without bias."""

    def __init__(self, vllm_config: VllmConfig, width: int, prefix: str) -> None:
        super().__init__()
        hidden, quant_config = vllm_config.model_config.hf_config.hidden_size, vllm_config.quant_config
        self.gate_up_proj = MergedColumnParallelLinear(
            hidden, [width] * 2, bias=False, quant_config=quant_config, prefix=f"{prefix}.gate_up_proj"
        )
        self.act = SiluAndMul()
        self.down_proj = RowParallelLinear(
            width, hidden, bias=False, quant_config=quant_config, prefix=f"{prefix}.down_proj"
        )

    def forward(self, hidden_TD: Tensor) -> Tensor:
        gate_up, _ = self.gate_up_proj(hidden_TD)
        output_TD: Tensor = self.down_proj(self.act(gate_up))[0]
        return output_TD


class ParallelBlock(nn.Module):
    """Phi's block: attention and feed-forward both read `input_layernorm(x)`, and both are added to x."""

    def __init__(self, norm: Callable[[], nn.Module], attention: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.input_layernorm = norm()
        self.self_attn = attention
        self.mlp = mlp

    def forward(self, positions_T: Tensor, hidden_TD: Tensor) -> Tensor:
        normed_TD = self.input_layernorm(hidden_TD)
        update_TD: Tensor = self.self_attn(positions_T, normed_TD) + self.mlp(normed_TD)
        return hidden_TD + update_TD


class SequentialBlock(nn.Module):
    """StableLM's and Qwen's block: attention, then feed-forward, each after its own norm."""

    def __init__(self, norm: Callable[[], nn.Module], attention: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.input_layernorm = norm()
        self.self_attn = attention
        self.post_attention_layernorm = norm()
        self.mlp = mlp

    def forward(self, positions_T: Tensor, hidden_TD: Tensor) -> Tensor:
        hidden_TD = hidden_TD + self.self_attn(positions_T, self.input_layernorm(hidden_TD))
        update_TD: Tensor = self.mlp(self.post_attention_layernorm(hidden_TD))
        return hidden_TD + update_TD


@support_torch_compile
class Decoder(nn.Module):
    """The decoder: token embedding, blocks and final norm."""

    def __init__(
        self,
        *,
        vllm_config: VllmConfig,
        make_block: Callable[[int, str], nn.Module],
        norm: Callable[[], nn.Module],
        prefix: str,
    ) -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.embed_tokens = VocabParallelEmbedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            make_block(index, f"{prefix}.layers.{index}") for index in range(config.num_hidden_layers)
        )
        self.norm = norm()

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        embeds_TD: Tensor = self.embed_tokens(input_ids)
        return embeds_TD

    def forward(self, positions_T: Tensor, embeds_TD: Tensor) -> Tensor:
        hidden_TD = embeds_TD
        for layer in self.layers:
            hidden_TD = layer(positions_T, hidden_TD)
        output_TD: Tensor = self.norm(hidden_TD)
        return output_TD
