"""Keeps what is attached to a model off the language model that vLLM's transformers backend makes of it.

There the language model is no part of the model but a copy of it, made whenever it is asked for. To embed
text the copy would call the `embed_input_ids` that is attached to the model, and that would ask for a copy
again, without end.
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
    """From now on the copy embeds text by itself, whatever `embed_input_ids` the model is given."""
    if not isinstance(model, MultiModalMixin):
        return
    copy = model.get_language_model

    def get_language_model() -> Any:
        language_model = copy()
        vars(language_model).pop("embed_input_ids", None)
        return language_model

    instance: Any = model
    instance.get_language_model = get_language_model
