"""The training model: tensor names, routing and upcycling."""

import pytest
import torch
from safetensors import safe_open

from prismoe.kernels.routing import TEXT
from prismoe.training.model.moe_llava import (
    ModelConfig,
    MoELLaVA,
    generate,
    prompt_tokens,
    upcycle,
)
from prismoe.training.model.tower import TowerConfig
from tests.training.model.test_reference import CHECKPOINT

IMAGE, END = 1, 0
SMALL = ModelConfig(vocab_size=40, hidden_size=32, intermediate_size=64, num_attention_heads=4)
SMALL_TOWER = TowerConfig(
    image_size=16, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
)
PICTURE_TOKENS = SMALL_TOWER.tokens


@pytest.fixture
def dense() -> MoELLaVA:
    torch.manual_seed(0)
    return MoELLaVA(SMALL, SMALL_TOWER).eval()


def prompts(pictures: int) -> torch.Tensor:
    """One prompt for each picture: two words, the picture, three words."""
    words = torch.randint(2, 40, (pictures, 5), generator=torch.Generator().manual_seed(1))
    image = torch.full((pictures, PICTURE_TOKENS), IMAGE)
    return torch.cat([words[:, :2], image, words[:, 2:]], dim=1)


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(2))


def test_tensor_names_are_the_phi_layout() -> None:
    with safe_open(CHECKPOINT / "model.safetensors", "pt") as checkpoint:
        expected = set(checkpoint.keys())
    three_blocks = TowerConfig(num_hidden_layers=3)
    model = MoELLaVA(ModelConfig(vocab_size=300, moe_layers=(0, 2)), three_blocks)
    assert set(model.state_dict()) == expected


def test_default_shapes() -> None:
    model = MoELLaVA(ModelConfig(vocab_size=300, moe_layers=(0, 2)), TowerConfig())
    shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    assert shapes["model.layers.0.mlp.deepspeed_moe.gate.wg.weight"] == (4, 192)
    assert shapes["model.layers.1.mlp.fc1.weight"] == (768, 192)
    vision = "model.image_tower.image_tower.vision_model"
    assert shapes[f"{vision}.embeddings.position_embedding.weight"] == (65, 192)
    assert sum(weight.numel() for weight in model.parameters()) < 8_000_000


@torch.inference_mode()
def test_an_upcycled_model_answers_like_the_dense_one(dense: MoELLaVA) -> None:
    tokens = prompt_tokens(prompts(2), IMAGE)
    sparse = upcycle(dense, (0, 2)).eval()
    dense_logits, none = dense(images(2), tokens)
    sparse_logits, routings = sparse(images(2), tokens)
    assert not none and len(routings) == 2
    torch.testing.assert_close(sparse_logits, dense_logits, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_vision_tail_tokens_take_all_experts(dense: MoELLaVA) -> None:
    tokens = prompt_tokens(prompts(3), IMAGE)
    _, routings = upcycle(dense, (0,))(images(3), tokens)
    (routing,) = routings
    probs = routing.step.logits_TE.double().softmax(-1)
    rpv = ((probs - 0.25) ** 2).mean(-1)
    segment = tokens.segment_BS.flatten()
    for token in range(len(segment)):
        own = segment == segment[token]
        is_tail = bool(segment[token] >= 0 and rpv[token] > rpv[own].mean())
        assert routing.is_tail_T[token] == is_tail
        assert (routing.weights_TA[token] > 0).sum() == (4 if is_tail else 2)
        top = probs[token].sort(descending=True).values[: 4 if is_tail else 2]
        used = routing.weights_TA[token][: len(top)].double()
        torch.testing.assert_close(used, top / top.sum(), atol=1e-6, rtol=1e-5)


def test_pictures_are_in_order() -> None:
    tokens = prompt_tokens(torch.tensor([[5, IMAGE, IMAGE, 6, IMAGE, IMAGE]]), IMAGE)
    assert tokens.segment_BS.tolist() == [[TEXT, 0, 0, TEXT, 1, 1]]


def test_generation_stops_at_the_end(dense: MoELLaVA) -> None:
    with torch.no_grad():
        dense.lm_head.weight.zero_()  # all tokens are equal, so that greedy decoding takes the first, the end
    reply = generate(dense, images(2), prompts(2), IMAGE, END, limit=5)
    assert reply.tolist() == [[END], [END]]
