"""Finds out at the start which media and tools the model and the server support."""

import json

from vllm.engine.protocol import EngineClient
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.serve.engine.protocol import ErrorResponse

from prismoe.model_plugins.models.moe_llava.names import RENDERER
from prismoe.server.requests.models import Served

PARAMETER, ARGUMENT, RESULT = "hedgerow", "meadowland", "fortyseven"
"""Words that no chat template contains. They mark a tool, a call and the call's result."""

VISION_CHUNK = "vision_chunk"
"""vLLM's common modality of images and videos, for models such as Kimi."""


async def find_served(engine: EngineClient, chat: OpenAIServingChat) -> Served:
    """Return what requests may contain with this model, its chat template and the operator's options."""
    parser = chat.parser_cls
    reads_forced_calls = parser is not None and parser.tool_parser_cls is not None
    return Served(
        modalities=_modalities(engine),
        images_choose_routing=engine.vllm_config.model_config.tokenizer_mode == RENDERER,
        template_has_tools=await _template_has_tools(engine, chat),
        reads_forced_calls=reads_forced_calls,
        reads_calls=reads_forced_calls and chat.enable_auto_tools,
    )


def _modalities(engine: EngineClient) -> frozenset[str]:
    processor = engine.renderer.mm_processor  # AsyncLLM has a renderer.
    limits = {} if processor is None else processor.info.allowed_mm_limits
    taken = {modality for modality, limit in limits.items() if limit > 0}
    return frozenset(taken | {"image", "video"} if VISION_CHUNK in taken else taken)


async def _template_has_tools(engine: EngineClient, chat: OpenAIServingChat) -> bool:
    """Return whether the chat template writes a tool, a call and the call's result into the prompt."""
    parameters = {"type": "object", "properties": {PARAMETER: {"type": "string"}}}
    call = {"name": "count", "arguments": json.dumps({"where": ARGUMENT})}
    messages = [
        {"role": "user", "content": "How many?"},
        {
            "role": "assistant",
            "content": "Let me see.",
            "tool_calls": [{"id": "call12345", "type": "function", "function": call}],
        },
        {"role": "tool", "tool_call_id": "call12345", "content": RESULT},
    ]
    tools = [{"type": "function", "function": {"name": "count", "parameters": parameters}}]
    request = ChatCompletionRequest.model_validate(
        {"messages": messages, "tools": tools, "tool_choice": None, "max_tokens": 1}
    )
    try:
        rendered = await chat.render_chat_request(request)
    except Exception:  # A template without tools may raise any error.
        return False
    if isinstance(rendered, ErrorResponse):
        return False
    ids = rendered[1][0]["prompt_token_ids"]  # type: ignore[typeddict-item]  # no encoder beside the decoder
    prompt = engine.renderer.get_tokenizer().decode(ids)
    return all(word in prompt for word in (PARAMETER, ARGUMENT, RESULT))
