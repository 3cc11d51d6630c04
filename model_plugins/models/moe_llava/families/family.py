"""What a family is: all that sets its decoders apart from those of other families."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prismoe.model_plugins.models.moe_llava.families.settings import DecoderConfig
from prismoe.model_plugins.models.moe_llava.names import CHAT_TEMPLATE
from prismoe.model_plugins.models.moe_llava.tokenizers import RanksTokenizer


@dataclass(frozen=True)
class Layout:
    """What the authors' checkpoints call the parts of a decoder. The defaults are the names in `model`."""

    trunk: str = "model"
    embedding: str = "embed_tokens"
    layers: str = "layers"
    final_norm: str = "norm"
    block_norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    """With one norm, attention and feed-forward both read it; with two, one follows the other."""
    attention: str = "self_attn"
    attention_output: str = "o_proj"
    fused_qkv: str | None = None
    """One projection in place of q_proj, k_proj and v_proj."""


@dataclass(frozen=True)
class FeedForward:
    """A feed-forward layer: down(activation(gate(x)) · up(x)), or down(activation(up(x))) without a gate."""

    activation: str
    """vLLM's name for it in experts."""
    gate: str | None
    up: str
    down: str
    has_bias: bool = False

    @property
    def inner(self) -> tuple[str, ...]:
        """The projections to its width."""
        return (self.up,) if self.gate is None else (self.gate, self.up)


@dataclass(frozen=True)
class DecoderFacts:
    """What the keys of one checkpoint's config mean, which each family calls otherwise."""

    dense_width: int
    kv_heads: int
    positions: int
    norm_eps: float
    rope: dict[str, Any]
    """vLLM's rope_parameters."""
    qkv_bias: bool
    output_bias: bool
    ties_embeddings: bool = False
    """Whether the token embedding is the output layer, too: such a checkpoint holds no lm_head."""


def default_rope(theta: float, share: float) -> dict[str, Any]:
    """The rope of a decoder that rotates this share of each head."""
    return {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": share}


@dataclass(frozen=True)
class Family:
    """The facts of one family."""

    title: str
    spelling: str
    """How the authors' class names spell it."""
    configs: tuple[type[DecoderConfig], ...]
    """With experts; and before its layers became experts, where that is served."""
    decoder: Callable[[Any], DecoderFacts]
    """Reads a config. Raises ValueError with a sentence for a decoder that is not served."""
    feed_forward: FeedForward
    layout: Layout = Layout()
    has_rms_norm: bool = False
    """RMSNorm, without bias, in place of LayerNorm."""
    tokenizer: type[RanksTokenizer] | None = None
    """None: transformers knows it."""
    chat_template: Path = CHAT_TEMPLATE

    @property
    def architectures(self) -> list[str]:
        """Re-saving a model that was loaded for evaluation prefixes its architecture's name with Eval."""
        return [
            f"{prefix}{kind}{self.spelling}ForCausalLM"
            for kind, _ in zip(("MoELLaVA", "Llava"), self.configs, strict=False)
            for prefix in ("", "Eval")
        ]

    @property
    def tokenizer_files(self) -> list[tuple[str, ...]]:
        """The files that make its tokenizer, in any of these forms."""
        ranks = tuple(self.tokenizer.vocab_files_names.values()) if self.tokenizer else None
        return [("tokenizer.json",), *([ranks] if ranks else []), ("vocab.json", "merges.txt")]
