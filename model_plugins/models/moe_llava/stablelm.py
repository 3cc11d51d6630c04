"""MoE-LLaVA on StableLM."""

from torch import nn
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
class MoELLaVAStablelmForCausalLM(MoELLaVA):
    """Sequential blocks with LayerNorm, rotary embedding on a quarter of each head, SiLU-gated experts."""

    hf_to_vllm_mapper = checkpoint_names("model") | WeightsMapper(
        orig_to_new_stacked={
            ".mlp.gate_proj": (".mlp.gate_up_proj", 0),
            ".mlp.up_proj": (".mlp.gate_up_proj", 1),
        }
    )
    expert_kind = ExpertKind("silu", ("gate_proj", "down_proj", "up_proj"))

    def make_norm(self) -> nn.Module:
        return nn.LayerNorm(self.config.hidden_size, eps=self.config.norm_eps)

    def make_dense(self, prefix: str) -> nn.Module:
        return GatedMLP(self.vllm_config, dense_width(self.config), prefix)

    def make_block(self, mlp: nn.Module, prefix: str) -> nn.Module:
        config = self.config
        attention = DecoderAttention(
            self.vllm_config,
            num_kv_heads=config.num_key_value_heads,
            max_positions=config.max_position_embeddings,
            rope={
                "rope_type": "default",
                "rope_theta": config.rope_theta,
                "partial_rotary_factor": config.rope_pct,
            },
            qkv_bias=config.use_qkv_bias,
            output_bias=False,
            prefix=f"{prefix}.self_attn",
        )
        return SequentialBlock(self.make_norm, attention, mlp)
