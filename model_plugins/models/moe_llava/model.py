"""MoE-LLaVA, from its authors' checkpoint format, on a decoder of any of its families."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import ColumnParallelLinear, RowParallelLinear
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.models.interfaces import MultiModalEmbeddings, SupportsMultiModal
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.sequence import IntermediateTensors

from prismoe.model_plugins.models.moe_llava.config import (
    expert_width,
    experts_by_layer,
    moe_settings,
    routing_in_force,
)
from prismoe.model_plugins.models.moe_llava.decoder import (
    BiasedMLP,
    Decoder,
    DecoderAttention,
    GatedMLP,
    ParallelBlock,
    SequentialBlock,
)
from prismoe.model_plugins.models.moe_llava.families import family_of
from prismoe.model_plugins.models.moe_llava.families.family import Family
from prismoe.model_plugins.models.moe_llava.moe import MoE
from prismoe.model_plugins.models.moe_llava.processing import (
    IMAGE_MARK,
    MoELLaVADummyInputs,
    MoELLaVAProcessingInfo,
    MoELLaVAProcessor,
)
from prismoe.model_plugins.models.moe_llava.tensors import TensorList
from prismoe.model_plugins.models.moe_llava.tower import (
    drops_first_token,
    find_whole_tower,
    make_tower,
    patch_grid,
    tower_config,
    tower_weights,
)
from prismoe.model_plugins.moe_layer.model_routing import PolicyRouting
from prismoe.model_plugins.moe_layer.request_routing import with_numbers, without_numbers
from prismoe.model_plugins.moe_layer.step import Media
from prismoe.model_plugins.worker.engine_options import operator_settings

MODALITIES = ("text", "image")


def checkpoint_names(family: Family) -> WeightsMapper:
    """The mapping from the tensor names in a family's checkpoints to the names in this model."""
    layout, mlp = family.layout, family.feed_forward
    trunk, attention = layout.trunk, f".{layout.attention}"
    norms = zip(layout.block_norms, ("input_layernorm", "post_attention_layernorm"), strict=False)
    renamed = {f".{stored}.": f".{used}." for stored, used in norms}
    renamed[f"{attention}.{layout.attention_output}."] = ".self_attn.o_proj."
    if layout.fused_qkv:
        renamed[f"{attention}.{layout.fused_qkv}."] = ".self_attn.qkv_proj."
    gated: dict[str, tuple[str, int]] = {}
    if mlp.gate is not None:
        renamed[f".mlp.{mlp.down}."] = ".mlp.down_proj."
        gated = {f".mlp.{name}": (".mlp.gate_up_proj", shard) for shard, name in enumerate(mlp.inner)}
    return WeightsMapper(
        orig_to_new_prefix={
            f"{trunk}.image_tower.image_tower.": "image_tower.",
            f"{trunk}.mm_projector.image_spatial_proj.0.": "mm_projector.linear_1.",
            f"{trunk}.mm_projector.image_spatial_proj.2.": "mm_projector.linear_2.",
            f"{trunk}.{layout.embedding}.": "model.embed_tokens.",
            f"{trunk}.{layout.layers}.": "model.layers.",
            f"{trunk}.{layout.final_norm}.": "model.norm.",
        },
        orig_to_new_substr={
            ".deepspeed_moe.gate.wg.": ".gate.",
            ".deepspeed_moe.router.": ".router.",
            ".deepspeed_moe.experts.deepspeed_experts.": ".experts.",
        }
        | renamed,
        orig_to_new_stacked={
            ".self_attn.q_proj": (".self_attn.qkv_proj", "q"),
            ".self_attn.k_proj": (".self_attn.qkv_proj", "k"),
            ".self_attn.v_proj": (".self_attn.qkv_proj", "v"),
            **gated,
        },
    )


class Projector(nn.Module):
    """The projector `mlp2x_gelu`, from the tower's width to the decoder's."""

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
class MoELLaVAForCausalLM(nn.Module, SupportsMultiModal):
    """Image tower, projector and a decoder whose MoE layers route by modality."""

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        if modality == "image":
            return IMAGE_MARK
        raise ValueError(f"MoE-LLaVA takes images, not {modality}.")

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.config, self.vllm_config = config, vllm_config
        self.family = family_of(config)
        self.facts = self.family.decoder(config)
        self.hf_to_vllm_mapper = checkpoint_names(self.family)
        self.experts_by_layer = experts_by_layer(config)
        in_force = routing_in_force(config, operator_settings(vllm_config).routing)
        self.routing = PolicyRouting(
            vllm_config, in_force, type(self).__name__, MODALITIES, moe_settings(config).top_k_experts
        )
        self.patch_grid = patch_grid(config, vllm_config.model_config.model)
        vision = tower_config(config.mm_image_tower, vllm_config.model_config.model)
        self.tensors = TensorList(config, vision, self.routing.in_force)
        self.unused_tensors: list[str] = []
        with self._mark_tower_model(vllm_config, "image"):
            self.image_tower = make_tower(vision, config.mm_vision_select_layer)
            self.mm_projector = Projector(vision.hidden_size, config.hidden_size)
        with self._mark_language_model(vllm_config):
            self.model = Decoder(
                vllm_config=vllm_config, make_block=self._make_block, norm=self._norm, prefix="model"
            )
        self.lm_head = ParallelLMHead(config.vocab_size, config.hidden_size, prefix="lm_head")
        if self.facts.ties_embeddings:
            self.lm_head = self.lm_head.tie_weights(self.model.embed_tokens)
        self.logits_processor = LogitsProcessor(config.vocab_size)

    def _norm(self) -> nn.Module:
        make = RMSNorm if self.family.has_rms_norm else nn.LayerNorm
        return make(self.config.hidden_size, eps=self.facts.norm_eps)

    def _dense(self, prefix: str) -> nn.Module:
        """The feed-forward layer of a block without experts."""
        if self.family.feed_forward.gate is None:
            return BiasedMLP(self.vllm_config, self.facts.dense_width, self.config.hidden_act, prefix)
        return GatedMLP(self.vllm_config, self.facts.dense_width, prefix)

    def _make_block(self, index: int, prefix: str) -> nn.Module:
        num_experts, mlp_prefix = self.experts_by_layer.get(index), f"{prefix}.mlp"
        mlp = self._dense(mlp_prefix) if num_experts is None else self._moe(index, num_experts, mlp_prefix)
        attention = DecoderAttention(self.vllm_config, self.facts, f"{prefix}.self_attn")
        block = ParallelBlock if len(self.family.layout.block_norms) == 1 else SequentialBlock
        return block(self._norm, attention, mlp)

    def _moe(self, index: int, num_experts: int, prefix: str) -> nn.Module:
        return MoE(
            self.family.feed_forward,
            self.config.hidden_size,
            expert_width(self.config),
            num_experts,
            self.routing.router(index, self.config.hidden_size),
            self._dense(f"{prefix}.mlp") if moe_settings(self.config).use_residual else None,
            self.vllm_config.quant_config,
            prefix,
        )

    def embed_text(self, token_ids: Tensor) -> Tensor:
        """The embeddings of token ids, `[T, D]`."""
        embeds_TD: Tensor = self.model.embed_tokens(token_ids)
        return embeds_TD

    def embed_multimodal(self, **kwargs: object) -> MultiModalEmbeddings:
        pixel_values = kwargs.get("pixel_values")
        if pixel_values is None:
            return []
        strategy = "default" if drops_first_token(self.config) else "full"
        features = self.image_tower(pixel_values, feature_select_strategy=strategy)
        asked_N2: Any = kwargs["asked_experts"]
        return with_numbers(self.mm_projector(features), asked_N2)

    def embed_input_ids(
        self,
        input_ids: Tensor,
        multimodal_embeddings: MultiModalEmbeddings | None = None,
        *,
        is_multimodal: Tensor | None = None,
    ) -> Tensor:
        images, asked = without_numbers([*(multimodal_embeddings or [])])
        media = [Media("image", len(asked_T2), asked_T2) for asked_T2 in asked]
        self.routing.step.tokens.mark(is_multimodal, media, len(input_ids))
        return super().embed_input_ids(input_ids, images, is_multimodal=is_multimodal)  # type: ignore[arg-type]

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: object,
    ) -> Tensor:
        hidden_TD: Tensor = self.model(positions, inputs_embeds)
        return hidden_TD

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        logits: Tensor | None = self.logits_processor(self.lm_head, hidden_states)
        return logits

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load every tensor of a checkpoint; those that serving doesn't use are listed in `unused_tensors`.

        Raises ValueError for a tensor that is missing, misshapen or unexpected.
        """
        return AutoWeightsLoader(self).load_weights(
            self._expert_weights(self._used_weights(weights)), mapper=self.hf_to_vllm_mapper
        )

    def _used_weights(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        self.unused_tensors = []
        used = set()
        for name, weight in self._with_tower(weights):
            if self.tensors.is_used(name, tuple(weight.shape)):
                used.add(name)
                yield name, weight
            else:
                self.unused_tensors.append(name)
        self.tensors.check_complete(used)

    def _with_tower(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """The weights, and after them the tower's from its own folder if the checkpoint has none."""
        has_tower = False
        for name, weight in weights:
            has_tower |= name.startswith(self.tensors.tower_prefix)
            yield name, weight
        if not has_tower:
            tower = find_whole_tower(self.config.mm_image_tower, self.vllm_config.model_config.model)
            for name, weight in tower_weights(tower):
                yield self.tensors.tower_prefix + name, weight

    def _expert_weights(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """The checkpoint's weights, adapted to tensor-parallel experts."""
        down = self.family.feed_forward.down
        for name, weight in weights:
            is_down_bias = ".deepspeed_experts." in name and name.endswith(f".{down}.bias")
            yield name, self._on_one_rank(weight) if is_down_bias else weight

    def _on_one_rank(self, bias: Tensor) -> Tensor:
        """The bias on the first rank, zeros on the others: tensor-parallel ranks sum the experts' outputs."""
        mlp: Any = self.model.layers[next(iter(self.experts_by_layer))].mlp
        experts: MoERunner = mlp.experts
        return bias if experts.moe_config.tp_rank == 0 else torch.zeros_like(bias)
