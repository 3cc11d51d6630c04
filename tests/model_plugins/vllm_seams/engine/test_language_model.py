"""A model that transformers computes embeds text itself, even if its embedding differs from the model's."""

from types import SimpleNamespace
from typing import Any

from vllm.model_executor.models.transformers.multimodal import MultiModalMixin

from prismoe.model_plugins.vllm_seams.engine.language_model import embed_text_as_before


class LanguageModel:
    def embed_input_ids(self, ids: str) -> str:
        return f"text of {ids}"


class Model(MultiModalMixin):
    """A model whose language model is a copy, like in vLLM's transformers backend."""

    def __init__(self) -> None:
        self.layers = 3

    def get_language_model(self) -> Any:
        copy = LanguageModel()
        vars(copy).update(vars(self))
        return copy

    def embed_input_ids(self, ids: str) -> str:  # type: ignore[override]
        embedded: str = self.get_language_model().embed_input_ids(ids)
        return embedded


def test_text_is_embedded_once() -> None:
    model: Any = Model()  # type: ignore[abstract]
    embed = model.embed_input_ids
    embed_text_as_before(model)
    model.embed_input_ids = lambda ids: f"marked {embed(ids)}"
    assert model.embed_input_ids("ids") == "marked text of ids"
    assert model.get_language_model().layers == 3


def test_other_models_are_not_changed() -> None:
    model = SimpleNamespace(get_language_model=LanguageModel)
    embed_text_as_before(model)
    assert model.get_language_model is LanguageModel
