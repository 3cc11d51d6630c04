"""The tensors that a MoE-LLaVA checkpoint must or may hold, by the authors' names.

The list comes from the configs alone, so the files' headers are enough to check a checkpoint before the
start.
"""

import re
from collections.abc import Iterable, Iterator
from typing import TypeAlias

from transformers import CLIPVisionConfig, PretrainedConfig
from vllm.model_executor.models.utils import get_layer_index

from prismoe.model_plugins.files.weight_files import Shape
from prismoe.model_plugins.models.moe_llava.config import expert_width, experts_by_layer, moe_settings
from prismoe.model_plugins.models.moe_llava.families import family_of
from prismoe.model_plugins.models.moe_llava.families.family import DecoderFacts, Layout
from prismoe.model_plugins.models.moe_llava.tower import TowerConfig
from prismoe.model_plugins.routing.policy import RoutingPolicy
from prismoe.model_plugins.routing.registry import RoutingInForce

NamedShapes: TypeAlias = Iterator[tuple[str, Shape]]

LEFTOVERS = (
    # Buffers that older releases of transformers saved; they are computed at load time.
    r"\.rotary_emb\.(inv_freq|cos_cached|sin_cached)$",
    r"\.embeddings\.position_ids$",
    # The tower's layers after the one whose output is used.
    r"\.image_tower\.vision_model\.(encoder\.layers\.\d+|post_layernorm|head)\.",
    # The parameters of routing policies that are not in force.
    r"\.deepspeed_moe\.(gate|router)\.",
    # Phi-2 has it; the authors' decoder ignores it.
    r"^lm_head\.bias$",
    # The output layer of a decoder that shares the embedding's weights.
    r"^lm_head\.weight$",
)
"""Patterns for tensors that serving does not use; they are searched for in names that are not needed."""


class TensorList:
    """The tensors that a checkpoint with this config must hold for the routing in force."""

    def __init__(self, config: PretrainedConfig, vision: TowerConfig, in_force: RoutingInForce) -> None:
        layout = self._layout = family_of(config).layout
        self.tower_prefix = f"{layout.trunk}.image_tower.image_tower."
        self.policies: dict[str, str] = {}
        """The policy that needs each of the routers' tensors."""
        self.needed: dict[str, Shape] = dict(_decoder(config, vision.hidden_size)) | {
            self.tower_prefix + name: shape for name, shape in _tower(vision, config)
        }
        for layer, num_experts in experts_by_layer(config).items():
            policy = in_force.layers[layer].policy
            router = dict(_router(self._moe_prefix(layer), policy, config.hidden_size, num_experts))
            self.needed |= router
            self.policies |= dict.fromkeys(router, policy.policy)

    def router_parameter(self, layer: int, name: str) -> str:
        """The name of a parameter that a layer's policy owns."""
        return _router_parameter(self._moe_prefix(layer), name)

    def _moe_prefix(self, layer: int) -> str:
        return f"{self._layout.trunk}.{self._layout.layers}.{layer}.mlp.deepspeed_moe"

    def is_used(self, name: str, shape: Shape) -> bool:
        """Whether a tensor of the checkpoint is used. False means one of LEFTOVERS.

        Raises ValueError for a wrong shape, and for a tensor that is neither.
        """
        if name in self.needed:
            if shape != self.needed[name]:
                raise ValueError(
                    f"The checkpoint's tensor {name} has the shape {list(shape)}, but {self._requirer(name)} "
                    f"asks for {list(self.needed[name])}."
                )
            return True
        if any(re.search(pattern, name) for pattern in LEFTOVERS):
            return False
        if ".lora_" in name:
            raise ValueError(
                f"The checkpoint holds unmerged LoRA weights ({name}): merge them into its weights."
            )
        raise ValueError(
            f"The checkpoint holds the tensor {name}, which its config.json has no place for: "
            "correct the config or the tensor's name."
        )

    def check_complete(self, names: Iterable[str]) -> None:
        """Raise ValueError where a needed tensor is not among `names`."""
        missing = sorted(self.needed.keys() - set(names))
        if missing:
            more = f" and {len(missing) - 1} more tensors" if len(missing) > 1 else ""
            raise ValueError(
                f"The checkpoint lacks the tensor {missing[0]}{more}, which {self._requirer(missing[0])} "
                "asks for."
            )

    def _requirer(self, name: str) -> str:
        policy = self.policies.get(name)
        return f"the routing policy {policy}" if policy else "its config.json"


def _linear(name: str, width: int, inputs: int, bias: bool) -> NamedShapes:
    yield f"{name}.weight", (width, inputs)
    if bias:
        yield f"{name}.bias", (width,)


def _norm(name: str, width: int, bias: bool = True) -> NamedShapes:
    yield f"{name}.weight", (width,)
    if bias:
        yield f"{name}.bias", (width,)


def _decoder(config: PretrainedConfig, tower_width: int) -> NamedShapes:
    family, hidden = family_of(config), config.hidden_size
    layout, facts, norm_bias = family.layout, family.decoder(config), not family.has_rms_norm
    trunk = layout.trunk
    if not facts.ties_embeddings:
        yield "lm_head.weight", (config.vocab_size, hidden)
    yield f"{trunk}.{layout.embedding}.weight", (config.vocab_size, hidden)
    yield from _norm(f"{trunk}.{layout.final_norm}", hidden, norm_bias)
    yield from _linear(f"{trunk}.mm_projector.image_spatial_proj.0", hidden, tower_width, bias=True)
    yield from _linear(f"{trunk}.mm_projector.image_spatial_proj.2", hidden, hidden, bias=True)
    experts = experts_by_layer(config)
    for layer in range(config.num_hidden_layers):
        prefix = f"{trunk}.{layout.layers}.{layer}"
        for norm in layout.block_norms:
            yield from _norm(f"{prefix}.{norm}", hidden, norm_bias)
        yield from _attention(f"{prefix}.{layout.attention}", layout, facts, config)
        if layer in experts:
            yield from _moe(f"{prefix}.mlp", config, experts[layer])
        else:
            yield from _mlp(f"{prefix}.mlp", config, facts.dense_width)


def _attention(prefix: str, layout: Layout, facts: DecoderFacts, config: PretrainedConfig) -> NamedShapes:
    hidden = config.hidden_size
    kv_width = facts.kv_heads * (hidden // config.num_attention_heads)
    widths = {"q_proj": hidden, "k_proj": kv_width, "v_proj": kv_width}
    if layout.fused_qkv:
        widths = {layout.fused_qkv: sum(widths.values())}
    for name, width in widths.items():
        yield from _linear(f"{prefix}.{name}", width, hidden, facts.qkv_bias)
    yield from _linear(f"{prefix}.{layout.attention_output}", hidden, hidden, facts.output_bias)


def _mlp(prefix: str, config: PretrainedConfig, width: int) -> NamedShapes:
    kind, hidden = family_of(config).feed_forward, config.hidden_size
    for inner in kind.inner:
        yield from _linear(f"{prefix}.{inner}", width, hidden, kind.has_bias)
    yield from _linear(f"{prefix}.{kind.down}", hidden, width, kind.has_bias)


def _moe(prefix: str, config: PretrainedConfig, num_experts: int) -> NamedShapes:
    for expert in range(num_experts):
        yield from _mlp(
            f"{prefix}.deepspeed_moe.experts.deepspeed_experts.{expert}", config, expert_width(config)
        )
    if moe_settings(config).use_residual:
        yield from _mlp(f"{prefix}.mlp", config, family_of(config).decoder(config).dense_width)
        yield from _linear(f"{prefix}.coefficient", 2, config.hidden_size, bias=True)


def _router(prefix: str, policy: RoutingPolicy, hidden: int, num_experts: int) -> NamedShapes:
    if rows := policy.gate_rows(num_experts):
        yield f"{prefix}.gate.wg.weight", (rows, hidden)
    for name, shape in policy.parameters(hidden, num_experts).items():
        yield _router_parameter(prefix, name), shape


def _router_parameter(prefix: str, name: str) -> str:
    return f"{prefix}.router.{name}"


def _tower(vision: TowerConfig, config: PretrainedConfig) -> NamedShapes:
    """The tower's tensors up to the layer whose output is used, by the names in the tower's own files."""
    is_clip, width = isinstance(vision, CLIPVisionConfig), vision.hidden_size
    embeddings, layers = "vision_model.embeddings", "vision_model.encoder.layers"
    if is_clip:
        yield f"{embeddings}.class_embedding", (width,)
        yield from _norm("vision_model.pre_layrnorm", width)
    else:
        yield f"{embeddings}.patch_embedding.bias", (width,)
    yield f"{embeddings}.patch_embedding.weight", (width, 3, vision.patch_size, vision.patch_size)
    positions = (vision.image_size // vision.patch_size) ** 2 + is_clip
    yield f"{embeddings}.position_embedding.weight", (positions, width)
    for layer in range(get_layer_index(config.mm_vision_select_layer, vision.num_hidden_layers)):
        for norm in ("layer_norm1", "layer_norm2"):
            yield from _norm(f"{layers}.{layer}.{norm}", width)
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _linear(f"{layers}.{layer}.self_attn.{projection}", width, width, bias=True)
        yield from _linear(f"{layers}.{layer}.mlp.fc1", vision.intermediate_size, width, bias=True)
        yield from _linear(f"{layers}.{layer}.mlp.fc2", width, vision.intermediate_size, bias=True)
