"""Architectures of vLLM's whose tokens would be counted under a wrong modality, and why."""

from collections.abc import Mapping

MISCOUNTED: Mapping[str, str] = {
    "Qwen3OmniMoeForConditionalGeneration": (
        "Qwen3OmniMoeForConditionalGeneration can mix a video's sound between its frames "
        "(use_audio_in_video), and prismoe would count the one as the other."
    ),
}
"""A sentence by the architecture's name in vLLM's registry.

prismoe takes the media tokens of a step for its embeddings one after the other. There vLLM puts the
embeddings of two overlapping items into place by token id.
"""
