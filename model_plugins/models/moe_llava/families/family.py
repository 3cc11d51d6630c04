"""A family: everything in which its decoders differ from those of other families."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prismoe.model_plugins.models.moe_llava.families.settings import DecoderConfig
from prismoe.model_plugins.models.moe_llava.names import CHAT_TEMPLATE
from prismoe.model_plugins.models.moe_llava.tokenizers import RanksTokenizer


@dataclass(frozen=True)
class Layout:
    """The names of a decoder's parts in the authors' checkpoints. The defaults are the names in `model`."""

    trunk: str = "model"
    embedding: str = "embed_tokens"
    layers: str = "layers"
    final_norm: str = "norm"
    block_norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    """With one norm, attention and feed-forward both read it; with two, feed-forward follows attention."""
    attention: str = "self_attn"
    attention_output: str = "o_proj"
    fused_qkv: str | None = None
    """The one projection that replaces q_proj, k_proj and v_proj."""


@dataclass(frozen=True)
class FeedForward:
    """A feed-forward layer: down(activation(gate(x)) · up(x)), or down(activation(up(x))) without a gate."""

    activation: str
    """vLLM's name of the activation in experts."""
    gate: str | None
    up: str
    down: str
    has_bias: bool = False

    @property
    def inner(self) -> tuple[str, ...]:
        """The names of the projections to the layer's width."""
        return (self.up,) if self.gate is None else (self.gate, self.up)


@dataclass(frozen=True)
class DecoderFacts:
    """The meaning of one checkpoint's config, whose keys differ by family."""

    dense_width: int
    kv_heads: int
    positions: int
    norm_eps: float
    rope: dict[str, Any]
    """vLLM's rope_parameters."""
    qkv_bias: bool
    output_bias: bool
    ties_embeddings: bool = False
    """Whether the output layer shares the token embedding's weights; such a checkpoint holds no lm_head."""


def default_rope(theta: float, share: float) -> dict[str, Any]:
    """The rope of a decoder that rotates this share of each head."""
    return {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": share}


@dataclass(frozen=True)
class Family:
    """The facts of one family."""

    title: str
    spelling: str
    """The family's name in the authors' class names."""
    configs: tuple[type[DecoderConfig], ...]
    """The config of the decoder with experts, and of the dense decoder before, where that is served."""
    decoder: Callable[[Any], DecoderFacts]
    """Reads a config. Raises ValueError for a decoder that prismoe does not serve."""
    feed_forward: FeedForward
    layout: Layout = Layout()
    has_rms_norm: bool = False
    """Whether the norms are RMSNorm, without bias, instead of LayerNorm."""
    tokenizer: type[RanksTokenizer] | None = None
    """None where transformers has the tokenizer."""
    chat_template: Path = CHAT_TEMPLATE

    @property
    def architectures(self) -> list[str]:
        """The names of its architectures. Re-saving a model loaded for evaluation puts Eval in front."""
        return [
            f"{prefix}{kind}{self.spelling}ForCausalLM"
            for kind, _ in zip(("MoELLaVA", "Llava"), self.configs, strict=False)
            for prefix in ("", "Eval")
        ]

    @property
    def tokenizer_files(self) -> list[tuple[str, ...]]:
        """The alternative sets of files that make up its tokenizer."""
        ranks = tuple(self.tokenizer.vocab_files_names.values()) if self.tokenizer else None
        return [("tokenizer.json",), *([ranks] if ranks else []), ("vocab.json", "merges.txt")]
