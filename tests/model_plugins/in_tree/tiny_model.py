"""Writes a tiny random-weight checkpoint in the layout of the Hub, through transformers' own classes."""

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
"""The tokens below are bytes; a random model may answer only with them, since the others stand for media."""


@dataclass(frozen=True)
class TinyModel:
    """What a checkpoint is made of."""

    architecture: type[PreTrainedModel]
    config: Callable[[dict[str, int]], Any]
    """Takes the numbers of the special tokens."""
    tokens: Sequence[str]
    """The special tokens; the first pads, the second ends an answer."""
    tokenizer_settings: dict[str, Any]
    processor: Callable[[Any, str], Any]
    """Takes the tokenizer and the chat template."""
    chat_template: str
    name: str | None = None
    """The architecture's in vLLM's registry, where transformers has another."""
    dtype: torch.dtype = torch.float32
    transposed: str | None = None
    """The Hub's layout swaps the last two axes of tensors whose names hold this."""
    renamed: dict[str, str] = field(default_factory=dict)
    """The Hub's layout has another part in the names of tensors that hold this one."""
    factors: dict[str, float] = field(default_factory=dict)
    """What parameters whose names end so are multiplied by."""
    seed: int = 0

    @property
    def served_as(self) -> str:
        """The architecture that vLLM serves it as."""
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
    """Large weights, so that tokens part ways; what starts as ones or zeros stays near them."""
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
