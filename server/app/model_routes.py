"""`GET /v1/models/NAME`, which vLLM lacks, and the model's name in the answer of `/v1/models`."""

from fastapi import APIRouter, HTTPException, Request
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.entrypoints.serve.engine.protocol import ModelCard

router = APIRouter(prefix="/v1/models")


@router.get("/{name:path}")
async def model(name: str, request: Request) -> ModelCard:
    """Describe a served model."""
    serving: OpenAIServingModels = request.app.state.openai_serving_models
    for card in (await serving.show_available_models()).data:
        if card.id == name:
            return card
    raise HTTPException(404, "There is no model of that name. GET /v1/models lists the models.")


def hide_folders(serving: OpenAIServingModels) -> None:
    """Make /v1/models answer with a model's name in the place of its folder on this machine."""
    for path in serving.base_model_paths:
        path.model_path = path.name
