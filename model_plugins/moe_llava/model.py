"""MoE-LLaVA with a Phi decoder, from its authors' checkpoint format."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner
from vllm.model_executor.layers.linear import ColumnParallelLinear, RowParallelLinear
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.models.clip import CLIPVisionModel
from vllm.model_executor.models.interfaces import MultiModalEmbeddings, SupportsMultiModal
from vllm.model_executor.models.utils import (
    AutoWeightsLoader,
    WeightsMapper,
    get_layer_index,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.sequence import IntermediateTensors

from prismoe.model_plugins.moe_llava.config import MoELLaVAPhiConfig, MoESettings, routing_in_force
from prismoe.model_plugins.moe_llava.moe import PhiMoE, constant_partner
from prismoe.model_plugins.moe_llava.phi import PhiMLP, PhiModel
from prismoe.model_plugins.moe_llava.processing import (
    IMAGE_MARK,
    MoELLaVADummyInputs,
    MoELLaVAProcessingInfo,
    MoELLaVAProcessor,
)
from prismoe.model_plugins.moe_llava.tower import drops_cls, tower_config
from prismoe.model_plugins.routed_model import ModalityRouting, operator_routing


class Projector(nn.Module):
    """`mlp2x_gelu`: from the tower's width to the decoder's."""

    def __init__(self, tower_width: int, hidden_size: int) -> None:
        super().__init__()
        self.linear_1 = ColumnParallelLinear(tower_width, hidden_size)
        self.act = nn.GELU()
        self.linear_2 = RowParallelLinear(hidden_size, hidden_size)

    def forward(self, features: Tensor) -> Tensor:
        hidden, _ = self.linear_1(features)
        output: Tensor = self.linear_2(self.act(hidden))[0]
        return output


@MULTIMODAL_REGISTRY.register_processor(
    MoELLaVAProcessor, info=MoELLaVAProcessingInfo, dummy_inputs=MoELLaVADummyInputs
)
class MoELLaVAPhiForCausalLM(nn.Module, SupportsMultiModal):
    """CLIP tower, projector and Phi decoder whose MoE layers route by modality."""

    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_prefix={
            "model.image_tower.image_tower.": "image_tower.",
            "model.mm_projector.image_spatial_proj.0.": "mm_projector.linear_1.",
            "model.mm_projector.image_spatial_proj.2.": "mm_projector.linear_2.",
        },
        orig_to_new_substr={
            ".deepspeed_moe.gate.wg.": ".gate.",
            ".deepspeed_moe.experts.deepspeed_experts.": ".experts.",
        },
        orig_to_new_stacked={
            ".self_attn.q_proj": (".self_attn.qkv_proj", "q"),
            ".self_attn.k_proj": (".self_attn.qkv_proj", "k"),
            ".self_attn.v_proj": (".self_attn.qkv_proj", "v"),
        },
    )

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        if modality == "image":
            return IMAGE_MARK
        raise ValueError(f"MoE-LLaVA takes images, not {modality}.")

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config: MoELLaVAPhiConfig = vllm_config.model_config.hf_config
        self.config = config
        self.experts_by_layer = MoESettings.model_validate(config.moe).experts_by_layer()
        self.routing = ModalityRouting(vllm_config, routing_in_force(config, operator_routing(vllm_config)))

        vision = tower_config(config.mm_image_tower, vllm_config.model_config.model)
        with self._mark_tower_model(vllm_config, "image"):
            self.image_tower = CLIPVisionModel(
                vision,
                num_hidden_layers_override=get_layer_index(
                    config.mm_vision_select_layer, vision.num_hidden_layers
                ),
                require_post_norm=False,
                prefix="image_tower",
            )
            self.mm_projector = Projector(vision.hidden_size, config.hidden_size)

        def make_mlp(index: int, prefix: str) -> nn.Module:
            num_experts = self.experts_by_layer.get(index)
            if num_experts is None:
                return PhiMLP(config, vllm_config.quant_config, prefix)
            return PhiMoE(
                config.hidden_size,
                config.intermediate_size,
                config.hidden_act,
                num_experts,
                self.routing.router(index, num_experts),
                vllm_config.quant_config,
                prefix,
            )

        with self._mark_language_model(vllm_config):
            self.model = PhiModel(vllm_config=vllm_config, make_mlp=make_mlp, prefix="model")
        self.lm_head = ParallelLMHead(config.vocab_size, config.hidden_size, prefix="lm_head")
        self.logits_processor = LogitsProcessor(config.vocab_size)

    def embed_multimodal(self, **kwargs: object) -> MultiModalEmbeddings:
        pixel_values = kwargs.get("pixel_values")
        if pixel_values is None:
            return []
        strategy = "default" if drops_cls(self.config) else "full"
        features = self.image_tower(pixel_values, feature_select_strategy=strategy)
        embeds: Tensor = self.mm_projector(features)
        return embeds

    def embed_input_ids(
        self,
        input_ids: Tensor,
        multimodal_embeddings: MultiModalEmbeddings | None = None,
        *,
        is_multimodal: Tensor | None = None,
    ) -> Tensor:
        sizes = [len(embeds) for embeds in multimodal_embeddings or ()]
        self.routing.segments.mark(is_multimodal, sizes, len(input_ids))
        return super().embed_input_ids(
            input_ids,
            multimodal_embeddings,  # type: ignore[arg-type]  # the two overloads say None or not, this is either
            is_multimodal=is_multimodal,
        )

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: object,
    ) -> Tensor:
        hidden_TD: Tensor = self.model(positions, inputs_embeds)
        self.routing.segments.clear()
        return hidden_TD

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        logits: Tensor | None = self.logits_processor(self.lm_head, hidden_states)
        return logits

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        return AutoWeightsLoader(self).load_weights(
            self._expert_weights(weights), mapper=self.hf_to_vllm_mapper
        )

    def _expert_weights(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """The checkpoint's weights, with what vLLM's experts need beyond them."""
        for name, weight in weights:
            yield name, self._bias_of_one_rank(name, weight)
        for layer, num_experts in self.experts_by_layer.items():
            if not self._experts(layer).activation.is_gated:
                continue
            partner = constant_partner(self.config.intermediate_size, self.config.hidden_size)
            for expert in range(num_experts):
                for kind, weight in partner.items():
                    yield f"model.layers.{layer}.mlp.experts.{expert}.partner.{kind}", weight

    def _bias_of_one_rank(self, name: str, weight: Tensor) -> Tensor:
        """Tensor-parallel ranks sum the experts' outputs, so just one of them may add the second bias."""
        if ".deepspeed_experts." not in name or not name.endswith(".fc2.bias"):
            return weight
        layer = int(name.split(".layers.")[1].split(".")[0])
        return weight if self._experts(layer).moe_config.tp_rank == 0 else torch.zeros_like(weight)

    def _experts(self, layer: int) -> MoERunner:
        mlp: Any = self.model.layers[layer].mlp
        experts: MoERunner = mlp.experts
        return experts
