"""MoE-LLaVA on Qwen of the first generation."""

from torch import nn
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.models.utils import WeightsMapper
from vllm.multimodal import MULTIMODAL_REGISTRY

from prismoe.model_plugins.models.moe_llava.config import dense_width
from prismoe.model_plugins.models.moe_llava.decoder import DecoderAttention, GatedMLP, SequentialBlock
from prismoe.model_plugins.models.moe_llava.model import MoELLaVA, checkpoint_names
from prismoe.model_plugins.models.moe_llava.moe import ExpertKind
from prismoe.model_plugins.models.moe_llava.processing import (
    MoELLaVADummyInputs,
    MoELLaVAProcessingInfo,
    MoELLaVAProcessor,
)


@MULTIMODAL_REGISTRY.register_processor(
    MoELLaVAProcessor, info=MoELLaVAProcessingInfo, dummy_inputs=MoELLaVADummyInputs
)
class MoELLaVAQWenForCausalLM(MoELLaVA):
    """Sequential blocks with RMSNorm; experts c_proj(w1(x) · silu(w2(x))) of half the config's width.

    Qwen's dynamic NTK and log-n attention act beyond `seq_length` positions only, and vLLM's
    max_model_len stays within those.
    """

    hf_to_vllm_mapper = checkpoint_names("transformer") | WeightsMapper(
        orig_to_new_prefix={
            "transformer.wte.": "model.embed_tokens.",
            "transformer.h.": "model.layers.",
            "transformer.ln_f.": "model.norm.",
        },
        orig_to_new_substr={
            ".attn.c_attn.": ".self_attn.qkv_proj.",
            ".attn.c_proj.": ".self_attn.o_proj.",
            ".ln_1.": ".input_layernorm.",
            ".ln_2.": ".post_attention_layernorm.",
            ".mlp.c_proj.": ".mlp.down_proj.",
        },
        orig_to_new_stacked={
            ".mlp.w2": (".mlp.gate_up_proj", 0),
            ".mlp.w1": (".mlp.gate_up_proj", 1),
        },
    )
    expert_kind = ExpertKind("silu", ("w2", "c_proj", "w1"))

    def make_norm(self) -> nn.Module:
        return RMSNorm(self.config.hidden_size, eps=self.config.layer_norm_epsilon)

    def make_dense(self, prefix: str) -> nn.Module:
        return GatedMLP(self.vllm_config, dense_width(self.config), prefix)

    def make_block(self, mlp: nn.Module, prefix: str) -> nn.Module:
        config = self.config
        attention = DecoderAttention(
            self.vllm_config,
            num_kv_heads=config.num_attention_heads,
            max_positions=config.seq_length,
            rope={
                "rope_type": "default",
                "rope_theta": config.rotary_emb_base,
                "partial_rotary_factor": config.rotary_pct,
            },
            qkv_bias=True,
            output_bias=not config.no_bias,
            prefix=f"{prefix}.self_attn",
        )
        return SequentialBlock(self.make_norm, attention, mlp)
