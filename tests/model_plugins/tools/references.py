"""Reference files of tiny checkpoints, from the plain implementation."""

from pathlib import Path

import numpy as np
import torch

from tests.model_plugins.plain_moe_llava import IMAGE, PlainMoELLaVA

PROMPT = [3, 77, 12, IMAGE, 5, 210, 9, 44, 8]
TEXT = [7, 9, 300, 11]
STEPS = 3


def write_reference(checkpoint: Path, file: Path) -> None:
    """Write a prompt with an image and one without, in the form of `prismoe check --against`."""
    plain = PlainMoELLaVA(checkpoint)
    pixels = np.random.default_rng(0).standard_normal((1, 3, 56, 56), dtype=np.float32)
    arrays = {"input_ids": np.array([PROMPT]), "pixel_values": pixels, "text_input_ids": np.array([TEXT])}
    for prefix, token_ids in (("", PROMPT), ("text_", TEXT)):
        images = torch.tensor(pixels) if IMAGE in token_ids else torch.empty(0)
        trace = plain(token_ids, images)
        arrays[f"{prefix}logits"] = trace.logits[None].numpy()
        for layer, logits_TE in trace.router_logits.items():
            arrays[f"{prefix}layer{layer}_router_logits"] = logits_TE.numpy()
            arrays[f"{prefix}layer{layer}_topk_ids"] = np.array(
                [[expert for expert, _ in pairs] for pairs in trace.pairs[layer]]
            )
        continued = list(token_ids)
        for _ in range(STEPS):
            continued.append(int(plain(continued, images).logits[-1].argmax()))
        arrays[f"{prefix}greedy_ids"] = np.array(continued[len(token_ids) :])
    np.savez(file, allow_pickle=False, **arrays)
