"""`GET /v1/models/NAME`, which vLLM lacks, and what /v1/models tells of a model."""

from fastapi import APIRouter, HTTPException, Request
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.entrypoints.serve.engine.protocol import ModelCard

router = APIRouter(prefix="/v1/models")


@router.get("/{name:path}")
async def model(name: str, request: Request) -> ModelCard:
    """A served model."""
    serving: OpenAIServingModels = request.app.state.openai_serving_models
    for card in (await serving.show_available_models()).data:
        if card.id == name:
            return card
    raise HTTPException(404, "There is no model of that name. GET /v1/models lists those that there are.")


def hide_folders(serving: OpenAIServingModels) -> None:
    """Have /v1/models tell a model's name where vLLM tells its folder on this machine."""
    for path in serving.base_model_paths:
        path.model_path = path.name
