"""Models whose media tokens may not be in the order of the embeddings: token ids say which is which.

Qwen3-Omni mixes a video's sound between its frames (use_audio_in_video); the embeddings of the one come all
before those of the other.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from prismoe.model_plugins.moe_layer.step import Media

BY_TOKEN_ID = frozenset({"Qwen3OmniMoeForConditionalGeneration"})
"""Their names in vLLM's registry."""


def placeholders_of(architecture: str, model: Any) -> Mapping[str, int]:
    """The token id of each modality's placeholders; nothing where a model fills them in their order."""
    if architecture not in BY_TOKEN_ID:
        return {}
    return {name: getattr(model.config, f"{name}_token_id") for name in ("image", "video", "audio")}


def media_places(
    token_ids_T: Tensor, is_media_T: Tensor, media: Sequence[Media], placeholders: Mapping[str, int]
) -> np.ndarray:
    """Where in the step each token of `media` lies, item by item: each kind of placeholder in its own order.

    The model reads the step's token ids on the host, too.
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
