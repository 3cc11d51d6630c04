"""MoE-LLaVA on Phi-2."""

from torch import nn
from vllm.model_executor.models.utils import WeightsMapper
from vllm.multimodal import MULTIMODAL_REGISTRY

from prismoe.model_plugins.models.moe_llava.config import dense_width
from prismoe.model_plugins.models.moe_llava.decoder import BiasedMLP, DecoderAttention, ParallelBlock
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
class MoELLaVAPhiForCausalLM(MoELLaVA):
    """Parallel blocks, biased projections, experts of two biased layers around a tanh-approximated GELU."""

    hf_to_vllm_mapper = checkpoint_names("model") | WeightsMapper(
        orig_to_new_substr={".self_attn.dense.": ".self_attn.o_proj."},
        orig_to_new_prefix={"model.final_layernorm.": "model.norm."},
    )
    expert_kind = ExpertKind("gelu_tanh_no_mul", ("fc1", "fc2", None), has_bias=True)

    def make_norm(self) -> nn.Module:
        return nn.LayerNorm(self.config.hidden_size, eps=self.config.layer_norm_eps)

    def make_dense(self, prefix: str) -> nn.Module:
        return BiasedMLP(self.vllm_config, dense_width(self.config), self.config.hidden_act, prefix)

    def make_block(self, mlp: nn.Module, prefix: str) -> nn.Module:
        config = self.config
        if config.qk_layernorm or config.hidden_act != "gelu_new":
            raise ValueError(
                f"The checkpoint's Phi decoder has qk_layernorm {config.qk_layernorm} and hidden_act "
                f"{config.hidden_act!r}; prismoe serves false and 'gelu_new'."
            )
        attention = DecoderAttention(
            self.vllm_config,
            num_kv_heads=config.num_key_value_heads,
            max_positions=config.max_position_embeddings,
            rope=config.rope_parameters,
            qkv_bias=True,
            output_bias=True,
            prefix=f"{prefix}.self_attn",
        )
        return ParallelBlock(self.make_norm, attention, mlp)
