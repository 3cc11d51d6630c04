"""The plain PyTorch loop with a cache computes the same as the forward pass without one."""

import torch

from prismoe.benchmarks.serving.plain_generation import PlainGenerator
from tests.model_plugins.engine import PHI
from tests.model_plugins.plain_moe_llava import IMAGE, PlainMoELLaVA


def test_the_same_tokens_with_and_without_a_cache() -> None:
    generator, plain = PlainGenerator(PHI, torch.float32), PlainMoELLaVA(PHI)
    side = generator.tower.config.image_size
    pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    prompt = [IMAGE, 5, 9, 20, 31]
    expected: list[int] = []
    for _ in range(6):
        expected.append(int(plain(prompt + expected, pixels).logits[-1].argmax()))
    assert generator.generate(prompt, pixels, 6) == expected
