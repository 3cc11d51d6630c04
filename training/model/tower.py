"""The image tower: a Vision Transformer with CLIPVisionModel's tensor names (Radford et al. 2021).

Shape legend: B pictures, N tokens (the class token, then the patches row by row), V tower width, H heads.
"""

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn import functional


class TowerConfig(BaseModel):
    """The fields of CLIP's vision `config.json` that shape the network."""

    model_config = ConfigDict(extra="forbid")

    image_size: int = 64
    patch_size: int = 8
    num_channels: int = 3
    hidden_size: int = 192
    intermediate_size: int = 768
    num_hidden_layers: int = 5
    num_attention_heads: int = 6
    hidden_act: Literal["quick_gelu"] = "quick_gelu"
    layer_norm_eps: float = 1e-5

    @property
    def tokens(self) -> int:
        """The number of patches in a picture."""
        return (self.image_size // self.patch_size) ** 2


class Embeddings(nn.Module):
    """Patches and the class token, with learned positions."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.class_embedding = nn.Parameter(torch.randn(width) * 0.02)
        self.patch_embedding = nn.Conv2d(
            config.num_channels, width, kernel_size=config.patch_size, stride=config.patch_size, bias=False
        )
        self.position_embedding = nn.Embedding(config.tokens + 1, width)
        nn.init.normal_(self.position_embedding.weight, std=0.02)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        patches_BNV = self.patch_embedding(image_BCHW).flatten(2).transpose(1, 2)
        class_B1V = self.class_embedding.to(patches_BNV.dtype).expand(len(patches_BNV), 1, -1)
        return torch.cat([class_B1V, patches_BNV], dim=1) + self.position_embedding.weight


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """Scaled dot-product attention. For such short sequences it trains faster on CPU than the fused one."""
    scores = query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2)
    return torch.softmax(scores if bias is None else scores + bias, dim=-1) @ value


class Attention(nn.Module):
    """Multi-head self-attention without a mask."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x_BNV: Tensor) -> Tensor:
        query, key, value = (
            projection(x_BNV).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed_BHNV = attend(query, key, value, None)
        return self.out_proj(mixed_BHNV.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two linear maps around quick GELU, x · sigmoid(1.702 x) = silu(1.702 x) / 1.702.

    The factors are part of the maps.
    """

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x_BNV: Tensor) -> Tensor:
        hidden_BNV = functional.silu(functional.linear(x_BNV, self.fc1.weight * 1.702, self.fc1.bias * 1.702))
        return functional.linear(hidden_BNV, self.fc2.weight / 1.702, self.fc2.bias)


class Layer(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = Attention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x_BNV: Tensor) -> Tensor:
        x_BNV = x_BNV + self.self_attn(self.layer_norm1(x_BNV))
        return x_BNV + self.mlp(self.layer_norm2(x_BNV))


class Encoder(nn.Module):
    """The stack of blocks."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))


class VisionModel(nn.Module):
    """CLIP's `vision_model`, which has the name `pre_layrnorm`. `post_layernorm` is for the class token."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.encoder = Encoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


class ImageTower(nn.Module):
    """A picture's patch features at the selected layer, without the class token.

    This is `mm_vision_select_feature: patch`.
    """

    def __init__(self, config: TowerConfig, select_layer: int) -> None:
        """A negative `select_layer` counts hidden states from the end, as in CLIP: -1 is the last output."""
        super().__init__()
        self.config = config
        self.blocks_used = config.num_hidden_layers + 1 + select_layer
        self.vision_model = VisionModel(config)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """`[B, N, V]` for pictures normalised to the processor's mean and deviation."""
        x_BNV = self.vision_model.pre_layrnorm(self.vision_model.embeddings(image_BCHW))
        for layer in self.vision_model.encoder.layers[: self.blocks_used]:
            x_BNV = layer(x_BNV)
        return x_BNV[:, 1:]
