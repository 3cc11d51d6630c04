"""Places media tokens by token id, where their order may differ from that of the embeddings.

Qwen3-Omni mixes a video's sound between its frames (use_audio_in_video), but the embeddings of one all
precede those of the other.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from prismoe.model_plugins.moe_layer.step import Media

BY_TOKEN_ID = frozenset({"Qwen3OmniMoeForConditionalGeneration"})
"""The names of such models in vLLM's registry."""


def placeholders_of(architecture: str, model: Any) -> Mapping[str, int]:
    """The token id of each modality's placeholders; empty where a model fills them in order."""
    if architecture not in BY_TOKEN_ID:
        return {}
    return {name: getattr(model.config, f"{name}_token_id") for name in ("image", "video", "audio")}


def media_places(
    token_ids_T: Tensor, is_media_T: Tensor, media: Sequence[Media], placeholders: Mapping[str, int]
) -> np.ndarray:
    """The position in the step of each token of `media`, item by item; each modality's placeholders in order.

    The host reads the step's token ids, as the model does, too.
    """
    is_media = is_media_T.numpy()
    ids = token_ids_T.cpu().numpy()
    places = {name: np.flatnonzero(is_media & (ids == token)) for name, token in placeholders.items()}
    used = dict.fromkeys(placeholders, 0)
    found = []
    for modality, tokens, _ in media:
        found.append(places[modality][used[modality] : used[modality] + tokens])
        used[modality] += tokens
    return np.concatenate(found)
