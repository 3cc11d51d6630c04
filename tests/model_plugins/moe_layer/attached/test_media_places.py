"""Media that are placed by token id have the right modality and segment in all places."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from prismoe.kernels.expert_load import LayerShape
from prismoe.model_plugins.moe_layer.attached.attach import mark_steps_of
from prismoe.model_plugins.moe_layer.attached.media_places import BY_TOKEN_ID
from prismoe.model_plugins.moe_layer.step import RoutingStep

IDS = {"i": 11, "v": 12, "a": 13}
NAMES = {"i": "image", "v": "video", "a": "audio"}
MODALITIES = ("text", "image", "video", "audio")


class Model:
    config = SimpleNamespace(image_token_id=11, video_token_id=12, audio_token_id=13)

    def embed_input_ids(self, input_ids: Tensor, *_: Any, **__: Any) -> Tensor:
        return input_ids[:, None].float()


def marked(architecture: str, step: str, items: str) -> RoutingStep:
    """A step of text (t), media, and text that looks like a placeholder (I).

    `items` are the embeddings in order.
    """
    model: Any = Model()
    state = RoutingStep(MODALITIES, [LayerShape(4, 2, 4)], max_tokens=16)
    mark_steps_of(architecture, model, state)
    parts = []
    for item in items.split():
        part: Any = torch.zeros(len(item), 3)
        part.modality = NAMES[item[0]]
        parts.append(part)
    ids = torch.tensor([IDS.get(token.lower(), 1) for token in step])
    model.embed_input_ids(ids, parts, is_multimodal=torch.tensor([token in IDS for token in step]))
    return state


@pytest.mark.parametrize(
    ("step", "items", "segments"),
    [
        ("t", "", [-1]),
        ("v", "v", [0]),
        ("tvvaavat", "vvv aaa", [-1, 0, 0, -1, -1, 0, -1, -1]),
        ("tvvaavat", "aaa vvv", [-1, 1, 1, -1, -1, 1, -1, -1]),
        ("avva", "vv aa", [-1, 0, 0, -1]),  # as a step splits it
        ("iitvavatvva", "ii vv aa vv a", [0, 0, -1, 1, -1, 1, -1, -1, 3, 3, -1]),
        ("Itiit", "ii", [-1, -1, 0, 0, -1]),
        ("iiiat", "i ii a", [0, 1, 1, -1, -1]),
        ("iitiaiti", "ii i i a i", [0, 0, -1, 1, -1, 2, -1, 4]),
    ],
)
def test_each_token_has_the_modality_of_its_id(step: str, items: str, segments: list[int]) -> None:
    [architecture] = BY_TOKEN_ID
    tokens = marked(architecture, step, items).tokens
    modalities = [MODALITIES.index(NAMES.get(token, "text")) for token in step]
    assert tokens.modalities[: len(step)].tolist() == modalities
    assert tokens.segments[: len(step)].tolist() == segments


def test_other_models_fill_their_placeholders_in_order() -> None:
    tokens = marked("Qwen3VLMoeForConditionalGeneration", "iivv", "vv ii").tokens
    assert tokens.modalities[:4].tolist() == [2, 2, 1, 1]
