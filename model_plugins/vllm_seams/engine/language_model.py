"""Keeps an attached `embed_input_ids` from the language model of vLLM's transformers backend.

There the language model is not a part of the model but a copy of it, made on every request for it. To embed
text, the copy would call the `embed_input_ids` that is attached to the model, which would request a copy
again, and so on without end.
"""

from typing import Any

from vllm.model_executor.models.transformers.multimodal import MultiModalMixin

from prismoe.model_plugins.vllm_seams.check import Needed

NEEDS = [
    Needed(
        "vllm.model_executor.models.transformers.multimodal:MultiModalMixin.get_language_model",
        attributes=("__class__", "mro"),
    )
]


def embed_text_as_before(model: Any) -> None:
    """Make the copy embed text by itself from now on, even if another `embed_input_ids` is attached."""
    if not isinstance(model, MultiModalMixin):
        return
    copy = model.get_language_model

    def get_language_model() -> Any:
        language_model = copy()
        vars(language_model).pop("embed_input_ids", None)
        return language_model

    instance: Any = model
    instance.get_language_model = get_language_model
