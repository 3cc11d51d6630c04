"""Runs chat requests and returns the experts to which each of their tokens was routed."""

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

MAX_TOKENS = 8192
"""The most tokens of a request that are recorded."""
MAX_NEW_TOKENS = 512
MAX_WAITING = 4
"""The most inspections that wait for their turn. Inspections run one at a time."""

DONE = "data: [DONE]\n\n"

NO_LAYERS = "This checkpoint has no MoE layers, so there is no routing to inspect."
REPLACED = "An inspection by another API server replaced this one: try again in a moment."
NO_LOGITS = (
    "This server runs a compiled model, and router logits can't be recorded in it: "
    "leave router_logits out, or start another server with --enforce-eager."
)


class InspectionRequest(ChatCompletionRequest):
    """An OpenAI chat body."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    max_tokens: Annotated[int, Field(ge=1, le=MAX_NEW_TOKENS)] | None = None
    """The most tokens of the answer."""
    max_completion_tokens: Annotated[int, Field(ge=1, le=MAX_NEW_TOKENS)] | None = None
    """OpenAI's newer name of max_tokens."""
    router_logits: bool = False
    """Whether to return the gates' logits, too. This needs an engine that runs eagerly."""


class Inspected(Model):
    """The answer to a request, and the routing of its tokens."""

    completion: ChatCompletionResponse
    """The answer, in the form of /v1/chat/completions."""
    routing: Inspection
    """The routing of its tokens."""


class Inspectable(Model):
    """The inspections that this server can make."""

    refusal: str | None
    """The reason why this server inspects nothing; None if it does."""
    router_logits: bool
    """Whether requests may ask for the gates' logits."""
    grid: PatchGrid | None
    """The arrangement of an image's tokens on the image; None if it differs between images."""
    request_experts: int
    """The most experts that a request may choose for its vision tokens; 0 if it may not choose."""
    moe_layers: int
    """The number of MoE layers of the model."""
    most_tokens: int = MAX_TOKENS
    """The most tokens of a request that are recorded. An answer says how many were left out."""
    most_new_tokens: int = MAX_NEW_TOKENS
    """The most tokens of an answer."""


async def find_inspectable(
    engine: Engine, vllm_config: VllmConfig, not_supported: Sequence[str]
) -> Inspectable:
    """Ask the engine what it can inspect. All engines give the same answer, and it does not change.

    `not_supported` has the reasons why prismoe can't see the model's MoE layers.
    """
    facts = (await engine.ask("prismoe_inspectable"))[0]
    refusal = None if facts["moe_layers"] else " ".join(not_supported) or NO_LAYERS
    return Inspectable(refusal=refusal, router_logits=runs_eagerly(vllm_config), **facts)


class Inspector:
    """Runs inspections, one at a time."""

    def __init__(self, engine: Engine, chat: OpenAIServingChat, inspectable: Inspectable) -> None:
        self._engine = engine
        self._chat = chat
        self._turn = asyncio.Lock()
        self._admitted = 0
        self.inspectable = inspectable

    async def answer(self, body: InspectionRequest) -> Inspected:
        """Run a request, and return its answer and its routing. Raises HTTPException if it is refused."""
        async with self._recording(body) as (request, routing):
            completion = accepted(await self._chat.create_chat_completion(request))
            assert isinstance(completion, ChatCompletionResponse)
            prompt = completion.prompt_token_ids or []
            recorded = await routing(prompt, completion.choices[0].token_ids or [])
        return Inspected(completion=completion, routing=recorded)

    async def events(self, body: InspectionRequest) -> AsyncGenerator[str, None]:
        """Run a request, and yield vLLM's server-sent events of its answer, then an event `routing`.

        Events that the client has not read yet are kept, so that a slow client does not delay the next
        inspection.
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
            await running  # This raises the error with which the task ended.
        finally:
            running.cancel()
            with anyio.CancelScope(shield=True):  # The wait must complete even if the client is gone.
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
        """Yield a request to run, which is recorded during the block, and a `Routing` to get the record."""
        check(body, self.inspectable)
        if self._admitted > MAX_WAITING:
            raise HTTPException(429, "Too many inspections wait for their turn: try again in a moment.")
        request = prepared(body)
        internal_id = f"chatcmpl-{request.request_id}"  # vLLM's own id begins like this and has a suffix.

        async def routing(prompt: list[int], answer: list[int]) -> Inspection:
            recorded = await self._engine.ask("prismoe_inspected_rows", internal_id)
            if None in recorded:
                raise HTTPException(503, REPLACED)
            # One of the data-parallel engines ran the request; the others recorded nothing.
            rows = RecordedRows.model_validate(max(recorded, key=lambda rows: len(rows["positions"])))
            tokenizer, grid = self._chat.renderer.get_tokenizer(), self.inspectable.grid
            return inspection(rows, grid, prompt, answer, lambda token: tokenizer.decode([token]))

        self._admitted += 1
        try:
            async with self._turn:
                try:
                    await self._engine.ask(
                        "prismoe_start_inspection", internal_id, MAX_TOKENS, body.router_logits
                    )
                    yield request, routing
                finally:
                    with anyio.CancelScope(shield=True):  # The recording must end even if the client is gone.
                        await self._engine.ask("prismoe_end_inspection", internal_id)
        finally:
            self._admitted -= 1


Routing = Callable[[list[int], list[int]], Awaitable[Inspection]]
"""A function from the tokens of a request's prompt and answer to their inspection."""


def runs_eagerly(vllm_config: VllmConfig) -> bool:
    """Return whether Python code runs in each step, so that the gates' logits can be recorded."""
    compilation = vllm_config.compilation_config
    return compilation.mode == CompilationMode.NONE and compilation.cudagraph_mode == CUDAGraphMode.NONE


def check(body: InspectionRequest, facts: Inspectable) -> None:
    """Raise HTTPException with a sentence if this server can't inspect the request."""
    if facts.refusal:
        raise HTTPException(501, facts.refusal)
    if (body.n or 1) != 1 or body.use_beam_search:
        raise HTTPException(400, "An inspection has only one answer: leave n and use_beam_search out.")
    if body.router_logits and not facts.router_logits:
        raise HTTPException(400, NO_LOGITS)


def prepared(body: InspectionRequest) -> ChatCompletionRequest:
    """Return the request to run, with a known id, and a salt so that no token comes from the prefix cache."""
    unique = str(uuid4())
    limits = {} if body.max_tokens or body.max_completion_tokens else {"max_tokens": MAX_NEW_TOKENS}
    usage = {"stream_options": StreamOptions(include_usage=True)} if body.stream else {}
    own = {"request_id": unique, "cache_salt": unique, "return_token_ids": True}
    return body.model_copy(update={**own, **limits, **usage})


Answer = ChatCompletionResponse | AsyncGenerator[str, None]


def accepted(answer: Answer | ErrorResponse) -> Answer:
    """Return vLLM's answer. Raises HTTPException if vLLM refuses the request."""
    if isinstance(answer, ErrorResponse):
        raise HTTPException(answer.error.code, answer.error.message)
    return answer
