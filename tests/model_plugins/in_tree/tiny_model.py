"""Writes a tiny random-weight checkpoint in the layout of the Hub, with transformers' own classes."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

BYTES = 256
"""The number of byte tokens. A random model may only answer with them, since the others stand for media."""


@dataclass(frozen=True)
class TinyModel:
    """The parts of a checkpoint."""

    architecture: type[PreTrainedModel]
    config: Callable[[dict[str, int]], Any]
    """A function of the special tokens' numbers."""
    tokens: Sequence[str]
    """The special tokens: the first pads, the second ends an answer."""
    tokenizer_settings: dict[str, Any]
    processor: Callable[[Any, str], Any]
    """A function of the tokenizer and the chat template."""
    chat_template: str
    name: str | None = None
    """The architecture in vLLM's registry, if transformers has a different one."""
    dtype: torch.dtype = torch.float32
    transposed: str | None = None
    """A part of the names of tensors whose last two axes are swapped in the Hub's layout."""
    renamed: dict[str, str] = field(default_factory=dict)
    """Parts of tensor names, and their replacements in the Hub's layout."""
    factors: dict[str, float] = field(default_factory=dict)
    """Endings of parameter names, and the factors for these parameters."""
    seed: int = 0

    @property
    def served_as(self) -> str:
        """The architecture that vLLM serves."""
        return self.name or self.architecture.__name__

    def save(self, folder: Path) -> None:
        ids = {token: BYTES + number for number, token in enumerate(self.tokens)}
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            model = self.architecture(self.config(ids)).to(self.dtype)
        _draw(model, self.seed)
        for ending, factor in self.factors.items():
            for name, parameter in model.named_parameters():
                if name.endswith(ending):
                    parameter.data *= factor
        model.save_pretrained(folder)
        if self.name is not None:
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(config | {"architectures": [self.name]}))
        file = folder / "model.safetensors"
        weights = load_file(file)
        for name in [name for name in weights if self.transposed and self.transposed in name]:
            weights[name] = weights[name].transpose(-1, -2).contiguous()
        for part, other in self.renamed.items():
            weights = {name.replace(part, other): tensor for name, tensor in weights.items()}
        save_file(weights, file, {"format": "pt"})
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=_byte_tokenizer(self.tokens),
            pad_token=self.tokens[0],
            eos_token=self.tokens[1],
            **self.tokenizer_settings,
        )
        self.processor(tokenizer, self.chat_template).save_pretrained(folder)


def _draw(model: torch.nn.Module, seed: int) -> None:
    """Draw large weights, so that tokens differ. Parameters that start as ones or zeros stay near them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in [*model.parameters(), *_routing_buffers(model)]:
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float32)
            if tensor.dim() > 1:
                inputs = math.prod(tensor.shape[1:]) if tensor.dim() > 3 else tensor.shape[-1]
                tensor.copy_(noise / math.sqrt(inputs))
            else:
                tensor.add_(0.1 * noise)


def _routing_buffers(model: torch.nn.Module) -> list[Tensor]:
    return [buffer for name, buffer in model.named_buffers() if name.endswith("e_score_correction_bias")]


def _byte_tokenizer(tokens: Sequence[str]) -> Tokenizer:
    vocabulary = {character: number for number, character in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(tokens))
    return tokenizer
