"""The Phi decoder on vLLM's layers, with MoE feed-forward layers where the checkpoint has them.

A block is parallel: attention and feed-forward both read `input_layernorm(x)`, and both are added to x.
"""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.functional import pad
from vllm.compilation.decorators import support_torch_compile
from vllm.config import CacheConfig, VllmConfig
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.model_executor.layers.activation import get_act_fn
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import ColumnParallelLinear, QKVParallelLinear, RowParallelLinear
from vllm.model_executor.layers.quantization import QuantizationConfig
from vllm.model_executor.layers.rotary_embedding import get_rope
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

from prismoe.model_plugins.moe_llava.config import MoELLaVAPhiConfig

SMALLEST_HEAD = 32
"""vLLM's attention kernels start at this head size; smaller heads are padded with zeros, which is exact."""

FeedForward = Callable[[int, str], nn.Module]
"""Makes the feed-forward layer of a decoder layer from its index and its prefix."""


class PhiAttention(nn.Module):
    """Attention with biased projections and rotary embedding on a part of each head."""

    def __init__(
        self,
        config: MoELLaVAPhiConfig,
        cache_config: CacheConfig | None,
        quant_config: QuantizationConfig | None,
        prefix: str,
    ) -> None:
        super().__init__()
        if config.qk_layernorm:
            raise ValueError("The checkpoint sets qk_layernorm, which prismoe's Phi decoder does not have.")
        head_size = config.hidden_size // config.num_attention_heads
        self.qkv_proj = QKVParallelLinear(
            config.hidden_size,
            head_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            bias=True,
            quant_config=quant_config,
            prefix=f"{prefix}.qkv_proj",
        )
        self.dense = RowParallelLinear(
            config.hidden_size,
            config.hidden_size,
            bias=True,
            quant_config=quant_config,
            prefix=f"{prefix}.dense",
        )
        self.rotary_emb = get_rope(
            head_size, max_position=config.max_position_embeddings, rope_parameters=config.rope_parameters
        )
        ranks = get_tensor_model_parallel_world_size()
        num_heads = config.num_attention_heads // ranks
        num_kv_heads = max(1, config.num_key_value_heads // ranks)
        self.head_size = head_size
        self.head_splits = [num_heads * head_size, num_kv_heads * head_size, num_kv_heads * head_size]
        self.head_padding = max(0, SMALLEST_HEAD - head_size)
        self.attn = Attention(
            num_heads,
            head_size + self.head_padding,
            head_size**-0.5,
            num_kv_heads=num_kv_heads,
            cache_config=cache_config,
            quant_config=quant_config,
            prefix=f"{prefix}.attn",
        )

    def forward(self, positions_T: Tensor, hidden_TD: Tensor) -> Tensor:
        qkv, _ = self.qkv_proj(hidden_TD)
        query, key, value = qkv.split(self.head_splits, dim=-1)
        query, key = self.rotary_emb(positions_T, query, key)
        if self.head_padding:
            query, key, value = (self._pad(heads) for heads in (query, key, value))
        attended = self.attn(query, key, value)
        if self.head_padding:
            attended = attended.unflatten(-1, (-1, self.attn.head_size))[..., : self.head_size].flatten(-2)
        output_TD: Tensor = self.dense(attended)[0]
        return output_TD

    def _pad(self, heads: Tensor) -> Tensor:
        return pad(heads.unflatten(-1, (-1, self.head_size)), (0, self.head_padding)).flatten(-2)


class PhiMLP(nn.Module):
    """The dense feed-forward layer."""

    def __init__(
        self, config: MoELLaVAPhiConfig, quant_config: QuantizationConfig | None, prefix: str
    ) -> None:
        super().__init__()
        self.fc1 = ColumnParallelLinear(
            config.hidden_size, config.intermediate_size, quant_config=quant_config, prefix=f"{prefix}.fc1"
        )
        self.act = get_act_fn(config.hidden_act)
        self.fc2 = RowParallelLinear(
            config.intermediate_size, config.hidden_size, quant_config=quant_config, prefix=f"{prefix}.fc2"
        )

    def forward(self, hidden_TD: Tensor) -> Tensor:
        hidden_TF, _ = self.fc1(hidden_TD)
        output_TD: Tensor = self.fc2(self.act(hidden_TF))[0]
        return output_TD


class PhiDecoderLayer(nn.Module):
    """One parallel block."""

    def __init__(
        self,
        config: MoELLaVAPhiConfig,
        cache_config: CacheConfig | None,
        quant_config: QuantizationConfig | None,
        mlp: nn.Module,
        prefix: str,
    ) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = PhiAttention(config, cache_config, quant_config, f"{prefix}.self_attn")
        self.mlp = mlp

    def forward(self, positions_T: Tensor, hidden_TD: Tensor) -> Tensor:
        normed_TD = self.input_layernorm(hidden_TD)
        update_TD: Tensor = self.self_attn(positions_T, normed_TD) + self.mlp(normed_TD)
        return hidden_TD + update_TD


@support_torch_compile
class PhiModel(nn.Module):
    """Embedding, decoder layers and the final norm; `make_mlp` decides which layers are MoE."""

    def __init__(self, *, vllm_config: VllmConfig, make_mlp: FeedForward, prefix: str) -> None:
        super().__init__()
        config: MoELLaVAPhiConfig = vllm_config.model_config.hf_config
        self.embed_tokens = VocabParallelEmbedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            PhiDecoderLayer(
                config,
                vllm_config.cache_config,
                vllm_config.quant_config,
                make_mlp(index, f"{prefix}.layers.{index}.mlp"),
                prefix=f"{prefix}.layers.{index}",
            )
            for index in range(config.num_hidden_layers)
        )
        self.final_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        embeds_TD: Tensor = self.embed_tokens(input_ids)
        return embeds_TD

    def forward(self, positions_T: Tensor, embeds_TD: Tensor) -> Tensor:
        hidden_TD = embeds_TD
        for layer in self.layers:
            hidden_TD = layer(positions_T, hidden_TD)
        output_TD: Tensor = self.final_layernorm(hidden_TD)
        return output_TD
