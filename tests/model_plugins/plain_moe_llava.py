"""MoE-LLaVA in plain PyTorch, one request at a time, written from the equations of its three decoders."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    PretrainedConfig,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from prismoe.model_plugins.models.moe_llava.config import routing_in_force
from tests.model_plugins.routing.policy_reference import RULES, Pairs, Step

IMAGE = -200
RMS_EPS = {"qwen": "layer_norm_epsilon", "qwen2": "rms_norm_eps"}
"""The key of config.json with the epsilon of RMSNorm. Other families have LayerNorm."""
Weights = dict[str, Tensor]


@dataclass
class Trace:
    """The results of a request's forward pass.

    Tables are by MoE layer, and `pairs` has one entry for each token.
    """

    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    router_logits: dict[int, Tensor] = field(default_factory=dict)
    pairs: dict[int, list[Pairs]] = field(default_factory=dict)


class PlainMoELLaVA:
    """A checkpoint's forward pass in float32, without a cache."""

    def __init__(self, checkpoint: Path) -> None:
        self.config: dict[str, Any] = json.loads((checkpoint / "config.json").read_text())
        self.family = self.config["model_type"].rpartition("_")[2]
        self.trunk = "transformer" if self.family == "qwen" else "model"
        self.weights = {
            name: weight.float() for name, weight in load_file(checkpoint / "model.safetensors").items()
        }
        in_force = routing_in_force(PretrainedConfig(**self.config), operator=None)
        self.policies = {layer: routing.policy for layer, routing in in_force.layers.items()}
        self.segments: list[int] = []
        self.tower = self._tower(checkpoint.parent / self.config["mm_image_tower"])

    @torch.inference_mode()
    def __call__(self, token_ids: list[int], images: Tensor, answer: int = 0, task: int = -1) -> Trace:
        """`token_ids` has IMAGE for each image, and `images` are pixel values `[N, 3, H, W]`.

        The last `answer` tokens belong to the answer. `task` is the request's label, or -1 for none.
        """
        trace = Trace()
        self.task, self.instruction = task, self._instruction(token_ids[: len(token_ids) - answer])
        x, self.segments = self._embed(token_ids, images)
        for layer in range(self.config["num_hidden_layers"]):
            x = self._block(layer, x, trace)
        final = {"phi": "final_layernorm", "qwen": "ln_f"}.get(self.family, "norm")
        normed = self._norm(x, f"{self.trunk}.{final}")
        tied = self.config["tie_word_embeddings"]
        trace.logits = normed @ self._embedding.T if tied else self._linear(normed, "lm_head")
        return trace

    def _tower(self, folder: Path) -> CLIPVisionModel | SiglipVisionModel:
        clip = "clip" in json.loads((folder / "config.json").read_text())["model_type"]
        config_kind, kind = (
            (CLIPVisionConfig, CLIPVisionModel) if clip else (SiglipVisionConfig, SiglipVisionModel)
        )
        model = kind(config_kind.from_pretrained(folder)).eval()
        prefix = f"{self.trunk}.image_tower.image_tower."
        stored = {name.removeprefix(prefix): w for name, w in self.weights.items() if name.startswith(prefix)}
        own = {name: name if name in stored else f"vision_model.{name}" for name in model.state_dict()}
        model.load_state_dict({name: stored[source] for name, source in own.items()})
        return model

    def _embed(self, token_ids: list[int], images: Tensor) -> tuple[Tensor, list[int]]:
        """The embeddings, and the image that each token belongs to, or -1 for text."""
        rows, segments, image = [], [], -1
        for token in token_ids:
            image += token == IMAGE
            rows.append(self._image(images[image]) if token == IMAGE else self._embedding[token][None])
            segments += [image if token == IMAGE else -1] * len(rows[-1])
        return torch.cat(rows), segments

    @property
    def _embedding(self) -> Tensor:
        return self.weights[f"{self.trunk}.{'wte' if self.family == 'qwen' else 'embed_tokens'}.weight"]

    def _instruction(self, prompt: list[int]) -> np.ndarray:
        """The mean embedding of the text tokens."""
        text = [self._embedding[token].double() for token in prompt if token != IMAGE]
        return torch.stack(text).mean(dim=0).numpy() if text else np.zeros(self._embedding.shape[1])

    def _image(self, pixel_values: Tensor) -> Tensor:
        hidden = self.tower(pixel_values[None], output_hidden_states=True).hidden_states
        features = hidden[self.config["mm_vision_select_layer"]][0]
        if self.config["mm_vision_select_feature"] == "patch":
            features = features[1:]
        projector = f"{self.trunk}.mm_projector.image_spatial_proj"
        return self._linear(functional.gelu(self._linear(features, f"{projector}.0")), f"{projector}.2")

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return functional.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        if self.family in RMS_EPS:
            scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.config[RMS_EPS[self.family]])
            return x * scale * weight
        eps = self.config["layer_norm_eps" if self.family == "phi" else "norm_eps"]
        return functional.layer_norm(x, x.shape[-1:], weight, self.weights[f"{name}.bias"], eps)

    def _block(self, layer: int, x: Tensor, trace: Trace) -> Tensor:
        prefix = f"{self.trunk}.{'h' if self.family == 'qwen' else 'layers'}.{layer}"
        if self.family == "phi":
            normed = self._norm(x, f"{prefix}.input_layernorm")
            return x + self._attention(normed, prefix) + self._feed_forward(normed, layer, prefix, trace)
        first, second = (
            ("ln_1", "ln_2") if self.family == "qwen" else ("input_layernorm", "post_attention_layernorm")
        )
        x = x + self._attention(self._norm(x, f"{prefix}.{first}"), prefix)
        return x + self._feed_forward(self._norm(x, f"{prefix}.{second}"), layer, prefix, trace)

    def _attention(self, x: Tensor, prefix: str) -> Tensor:
        heads = self.config["num_attention_heads"]
        if self.family == "qwen":
            q, k, v = self._linear(x, f"{prefix}.attn.c_attn").chunk(3, dim=-1)
            output = f"{prefix}.attn.c_proj"
        else:
            q, k, v = (self._linear(x, f"{prefix}.self_attn.{name}_proj") for name in "qkv")
            output = f"{prefix}.self_attn.{'dense' if self.family == 'phi' else 'o_proj'}"
        size = q.shape[-1] // heads
        q, k, v = (part.unflatten(-1, (-1, size)).transpose(0, 1) for part in (q, k, v))
        k, v = (part.repeat_interleave(heads // len(part), dim=0) for part in (k, v))
        q, k = self._rotate(q), self._rotate(k)
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        future = torch.ones(len(x), len(x)).triu(1).bool()
        mixed = scores.masked_fill(future, -torch.inf).softmax(-1) @ v
        return self._linear(mixed.transpose(0, 1).flatten(1), output)

    def _rotate(self, heads: Tensor) -> Tensor:
        part = {"stablelm": "rope_pct", "qwen": "rotary_pct"}.get(self.family, "partial_rotary_factor")
        base = self.config["rotary_emb_base" if self.family == "qwen" else "rope_theta"]
        size = int(heads.shape[-1] * self.config.get(part, 1))
        frequencies = base ** (-torch.arange(0, size, 2) / size)
        angles = torch.arange(heads.shape[1])[:, None] * frequencies
        cos, sin = angles.cos(), angles.sin()
        first, second, rest = heads.split([size // 2, size // 2, heads.shape[-1] - size], dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)

    def _feed_forward(self, x: Tensor, layer: int, prefix: str, trace: Trace) -> Tensor:
        moe = self.config.get("moe", {"moe_layers_idx": []})
        if layer not in moe["moe_layers_idx"]:
            return self._expert(x, f"{prefix}.mlp")
        trace.router_logits[layer], trace.pairs[layer] = self._route(x, layer, f"{prefix}.mlp.deepspeed_moe")
        output = torch.zeros_like(x)
        for token, pairs in enumerate(trace.pairs[layer]):
            for expert, weight in pairs:
                name = f"{prefix}.mlp.deepspeed_moe.experts.deepspeed_experts.{expert}"
                output[token] += weight * self._expert(x[token], name)
        if not moe["use_residual"]:
            return output
        shares = self._linear(x, f"{prefix}.mlp.coefficient").softmax(-1)
        return output * shares[:, :1] + self._expert(x, f"{prefix}.mlp.mlp") * shares[:, 1:]

    def _route(self, x: Tensor, layer: int, prefix: str) -> tuple[Tensor, list[Pairs]]:
        policy = self.policies[layer]
        gate = self.weights.get(f"{prefix}.gate.wg.weight", torch.empty(0, x.shape[1]))
        router = f"{prefix}.router."
        moe = self.config["moe"]
        step = Step(
            hidden=x.double().numpy(),
            logits=(x @ gate.T).double().numpy(),
            segments=self.segments,
            requests=[0] * len(x),
            asked=np.zeros((len(x), 2)),
            parameters={
                name.removeprefix(router): weight.double().numpy()
                for name, weight in self.weights.items()
                if name.startswith(router)
            },
            num_experts=moe["num_experts"][moe["moe_layers_idx"].index(layer)],
            tasks=[self.task] * len(x),
            instructions=np.tile(self.instruction, (len(x), 1)),
        )
        return x @ gate.T, RULES[policy.policy](policy, step)

    def _expert(self, x: Tensor, name: str) -> Tensor:
        if self.family == "phi":
            return self._linear(
                functional.gelu(self._linear(x, f"{name}.fc1"), approximate="tanh"), f"{name}.fc2"
            )
        if self.family == "qwen":
            inner = self._linear(x, f"{name}.w1") * functional.silu(self._linear(x, f"{name}.w2"))
            return self._linear(inner, f"{name}.c_proj")
        inner = functional.silu(self._linear(x, f"{name}.gate_proj")) * self._linear(x, f"{name}.up_proj")
        return self._linear(inner, f"{name}.down_proj")
