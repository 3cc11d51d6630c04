"""Generates answers of a MoE-LLaVA checkpoint in plain PyTorch: one request at a time, KV cache, top-k."""

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPVisionModel, SiglipVisionModel

from tests.model_plugins.plain_moe_llava import PlainMoELLaVA, Trace

Cache = dict[str, tuple[Tensor, Tensor]]


class PlainGenerator(PlainMoELLaVA):
    """Greedy generation. It routes all tokens by top-k and ignores the checkpoint's routing."""

    def __init__(self, checkpoint: Path, dtype: torch.dtype) -> None:
        self.folder = checkpoint
        super().__init__(checkpoint)
        self.weights = {name: weight.to(dtype) for name, weight in self.weights.items()}
        self.tower = self.tower.to(dtype)
        self.dtype = dtype
        self.cache: Cache = {}
        self.length = 0

    def _tower(self, folder: Path) -> CLIPVisionModel | SiglipVisionModel:
        inside = self.folder / self.config["mm_image_tower"]
        return super()._tower(inside if inside.is_dir() else folder)

    @torch.inference_mode()
    def generate(self, token_ids: Sequence[int], images: Tensor, count: int) -> list[int]:
        """Generate `count` tokens after a prompt in which IMAGE marks each image."""
        self.cache, self.length = {}, 0
        x, _ = self._embed(list(token_ids), images.to(self.dtype))
        answer: list[int] = []
        embedding = self.weights[f"{self.trunk}.embed_tokens.weight"]
        while True:
            for layer in range(self.config["num_hidden_layers"]):
                x = self._block(layer, x, Trace())
            self.length += len(x)
            final = {"phi": "final_layernorm", "stablelm": "norm"}[self.family]
            logits = self._linear(self._norm(x[-1:], f"{self.trunk}.{final}"), "lm_head")
            answer.append(int(logits.argmax()))
            if len(answer) == count:
                return answer
            x = embedding[answer[-1]][None]

    def _attention(self, x: Tensor, prefix: str) -> Tensor:
        q, k, v = (
            self._linear(x, f"{prefix}.self_attn.{name}_proj")
            .unflatten(-1, (self.config["num_attention_heads"], -1))
            .transpose(0, 1)
            for name in "qkv"
        )
        q, k = self._rotate(q), self._rotate(k)
        if prefix in self.cache:
            k, v = (torch.cat([old, new], dim=1) for old, new in zip(self.cache[prefix], (k, v), strict=True))
        self.cache[prefix] = k, v
        mixed = functional.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=len(x) > 1)[0]
        output = "dense" if self.family == "phi" else "o_proj"
        return self._linear(mixed.transpose(0, 1).flatten(1), f"{prefix}.self_attn.{output}")

    def _rotate(self, heads: Tensor) -> Tensor:
        part = self.config["partial_rotary_factor" if self.family == "phi" else "rope_pct"]
        size = int(heads.shape[-1] * part)
        frequencies = self.config["rope_theta"] ** (-torch.arange(0, size, 2) / size)
        positions = torch.arange(self.length, self.length + heads.shape[1])
        angles = positions[:, None] * frequencies
        cos, sin = angles.cos().to(self.dtype), angles.sin().to(self.dtype)
        first, second, rest = heads.split([size // 2, size // 2, heads.shape[-1] - size], dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)

    def _feed_forward(self, x: Tensor, layer: int, prefix: str, trace: Trace) -> Tensor:
        moe = self.config["moe"]
        if layer not in moe["moe_layers_idx"]:
            return self._expert(x, f"{prefix}.mlp")
        moe_prefix = f"{prefix}.mlp.deepspeed_moe"
        probs = self._linear(x, f"{moe_prefix}.gate.wg").float().softmax(-1)
        weights, experts = probs.topk(moe["top_k_experts"])
        weights = (weights / weights.sum(-1, keepdim=True)).to(self.dtype)
        output = torch.zeros_like(x)
        for expert in experts.unique().tolist():
            token, slot = (experts == expert).nonzero(as_tuple=True)
            name = f"{moe_prefix}.experts.deepspeed_experts.{expert}"
            output.index_add_(0, token, weights[token, slot, None] * self._expert(x[token], name))
        return output


def tokens_per_second(
    generator: PlainGenerator, requests: int, text: int, answer: int, images: int, image_side: int
) -> float:
    """Generated tokens a second over `requests` prompts of `text` random tokens, one after the other."""
    dice = torch.Generator().manual_seed(0)
    vocabulary = generator.config["vocab_size"]
    pixels = torch.randn(images, 3, image_side, image_side, generator=dice)
    prompts = [
        [-200] * images + torch.randint(1, vocabulary, (text,), generator=dice).tolist()
        for _ in range(requests + 1)
    ]
    generator.generate(prompts[0], pixels, 4)
    start = time.perf_counter()
    for prompt in prompts[1:]:
        assert len(generator.generate(prompt, pixels, answer)) == answer
    elapsed = time.perf_counter() - start
    return requests * answer / elapsed
