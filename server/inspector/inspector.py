"""Runs a chat request and tells what each of its tokens was routed to."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Annotated
from uuid import uuid4

import anyio
from fastapi import HTTPException
from pydantic import ConfigDict, Field
from vllm.config import CompilationMode, CUDAGraphMode, VllmConfig
from vllm.entrypoints.generate.base.protocol import StreamOptions
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest, ChatCompletionResponse
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.serve.engine.protocol import ErrorResponse

from prismoe.model_plugins.models.patch_grid import PatchGrid
from prismoe.server.inspector.inspection import Inspection, Model, RecordedRows, inspection
from prismoe.server.metrics.load_reader import Engine

MOST_TOKENS = 8192
"""How many of a request's tokens are recorded."""
MOST_NEW_TOKENS = 512
MOST_WAITING = 4
"""Inspections run one at a time; this many wait for their turn."""

DONE = "data: [DONE]\n\n"

NO_LAYERS = "This checkpoint has no MoE layers, so there is no routing to inspect."
REPLACED = "An inspection by another API server took the place of this one: try again in a moment."
NO_LOGITS = (
    "This server runs a compiled model, whose router logits can't be kept: "
    "leave router_logits out, or start another server with --enforce-eager."
)


class InspectionRequest(ChatCompletionRequest):
    """An OpenAI chat body."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    max_tokens: Annotated[int, Field(ge=1, le=MOST_NEW_TOKENS)] | None = None
    """The most tokens of the answer."""
    max_completion_tokens: Annotated[int, Field(ge=1, le=MOST_NEW_TOKENS)] | None = None
    """OpenAI's newer name of max_tokens."""
    router_logits: bool = False
    """Whether to tell the gates' logits too; an engine that runs eagerly has them."""


class Inspected(Model):
    """The answer to a request, and where its tokens went."""

    completion: ChatCompletionResponse
    """The answer, as /v1/chat/completions gives it."""
    routing: Inspection
    """Where its tokens went."""


class Inspectable(Model):
    """What can be inspected here."""

    refusal: str | None
    """Why this server inspects nothing; None where it does."""
    router_logits: bool
    """Whether requests may ask for the gates' logits."""
    grid: PatchGrid | None
    """How an image's tokens lie on it; None where the processor of the model decides for each image."""
    request_experts: int
    """The most experts that a request may ask for its vision tokens; 0: none."""
    moe_layers: int
    """How many MoE layers the model has."""
    most_tokens: int = MOST_TOKENS
    """How many tokens of a request are recorded; an answer says how many were left out."""
    most_new_tokens: int = MOST_NEW_TOKENS
    """The most tokens that an answer may have."""


async def what_is_inspectable(
    engine: Engine, vllm_config: VllmConfig, not_supported: Sequence[str]
) -> Inspectable:
    """Ask what can be inspected: each engine answers alike, and as long as it runs.

    `not_supported` says why a model's MoE layers can't be seen, where it has some.
    """
    facts = (await engine.ask("prismoe_inspectable"))[0]
    refusal = None if facts["moe_layers"] else " ".join(not_supported) or NO_LAYERS
    return Inspectable(refusal=refusal, router_logits=runs_eagerly(vllm_config), **facts)


class Inspector:
    """Inspects one request at a time."""

    def __init__(self, engine: Engine, chat: OpenAIServingChat, inspectable: Inspectable) -> None:
        self._engine = engine
        self._chat = chat
        self._turn = asyncio.Lock()
        self._under_way = 0
        self.inspectable = inspectable

    async def answer(self, body: InspectionRequest) -> Inspected:
        """The whole answer with the routing behind it."""
        async with self._recording(body) as (request, routing):
            completion = accepted(await self._chat.create_chat_completion(request))
            assert isinstance(completion, ChatCompletionResponse)
            prompt = completion.prompt_token_ids or []
            told = await routing(prompt, completion.choices[0].token_ids or [])
        return Inspected(completion=completion, routing=told)

    async def events(self, body: InspectionRequest) -> AsyncGenerator[str, None]:
        """The answer as it comes, as vLLM's server-sent events, then an event `routing`.

        What the client has not read yet waits here, so that a slow one keeps no other from its turn.
        """
        unread: asyncio.Queue[str | None] = asyncio.Queue()

        async def run() -> None:
            try:
                async for event in self._events(body):
                    unread.put_nowait(event)
            finally:
                unread.put_nowait(None)

        running = asyncio.create_task(run())
        try:
            while (event := await unread.get()) is not None:
                yield event
            await running  # It raises what it ended with.
        finally:
            running.cancel()
            with anyio.CancelScope(shield=True):  # also where the client has gone away
                await asyncio.wait([running])

    async def _events(self, body: InspectionRequest) -> AsyncGenerator[str, None]:
        async with self._recording(body) as (request, routing):
            chunks = accepted(await self._chat.create_chat_completion(request))
            assert not isinstance(chunks, ChatCompletionResponse)
            prompt: list[int] = []
            answer: list[int] = []
            failed = False
            async with aclosing(chunks):
                async for event in chunks:
                    if event == DONE:
                        break
                    chunk = json.loads(event.removeprefix("data: "))
                    prompt += chunk.get("prompt_token_ids") or []
                    for choice in chunk.get("choices", ()):
                        answer += choice.get("token_ids") or []
                    failed = failed or "error" in chunk
                    yield event
            if not failed:
                yield f"event: routing\ndata: {(await routing(prompt, answer)).model_dump_json()}\n\n"
            yield DONE

    @asynccontextmanager
    async def _recording(
        self, body: InspectionRequest
    ) -> AsyncIterator[tuple[ChatCompletionRequest, "Routing"]]:
        """While it lasts, the request that it gives is recorded; `Routing` tells what was."""
        check(body, self.inspectable)
        if self._under_way > MOST_WAITING:
            raise HTTPException(429, "Other inspections wait for their turn already: try again in a moment.")
        request = prepared(body)
        internal_id = f"chatcmpl-{request.request_id}"  # as vLLM names it, before a suffix of its own

        async def routing(prompt: list[int], answer: list[int]) -> Inspection:
            recorded = await self._engine.ask("prismoe_inspected_rows", internal_id)
            if None in recorded:
                raise HTTPException(503, REPLACED)
            # One of the data-parallel engines ran the request; the others recorded nothing.
            rows = RecordedRows.model_validate(max(recorded, key=lambda rows: len(rows["positions"])))
            tokenizer, grid = self._chat.renderer.get_tokenizer(), self.inspectable.grid
            return inspection(rows, grid, prompt, answer, lambda token: tokenizer.decode([token]))

        self._under_way += 1
        try:
            async with self._turn:
                try:
                    await self._engine.ask(
                        "prismoe_start_inspection", internal_id, MOST_TOKENS, body.router_logits
                    )
                    yield request, routing
                finally:
                    with anyio.CancelScope(shield=True):  # also where the client has gone away
                        await self._engine.ask("prismoe_end_inspection", internal_id)
        finally:
            self._under_way -= 1


Routing = Callable[[list[int], list[int]], Awaitable[Inspection]]
"""From a request's prompt and answer in tokens to where they went."""


def runs_eagerly(vllm_config: VllmConfig) -> bool:
    """Whether Python runs in each step, so that the gates can be watched."""
    compilation = vllm_config.compilation_config
    return compilation.mode == CompilationMode.NONE and compilation.cudagraph_mode == CUDAGraphMode.NONE


def check(body: InspectionRequest, facts: Inspectable) -> None:
    """Raise HTTPException with a sentence for what can't be inspected."""
    if facts.refusal:
        raise HTTPException(501, facts.refusal)
    if (body.n or 1) != 1 or body.use_beam_search:
        raise HTTPException(400, "An inspection follows one answer: leave n and use_beam_search out.")
    if body.router_logits and not facts.router_logits:
        raise HTTPException(400, NO_LOGITS)


def prepared(body: InspectionRequest) -> ChatCompletionRequest:
    """The request to run: under an id that is known, with no token out of the prefix cache."""
    unique = str(uuid4())
    limits = {} if body.max_tokens or body.max_completion_tokens else {"max_tokens": MOST_NEW_TOKENS}
    usage = {"stream_options": StreamOptions(include_usage=True)} if body.stream else {}
    own = {"request_id": unique, "cache_salt": unique, "return_token_ids": True}
    return body.model_copy(update={**own, **limits, **usage})


Answer = ChatCompletionResponse | AsyncGenerator[str, None]


def accepted(answer: Answer | ErrorResponse) -> Answer:
    """vLLM's answer; raises HTTPException where it refuses the request."""
    if isinstance(answer, ErrorResponse):
        raise HTTPException(answer.error.code, answer.error.message)
    return answer
