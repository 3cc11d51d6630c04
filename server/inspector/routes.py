"""The routes of `/v1/routing/inspect`."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from vllm.entrypoints.serve.utils.api_utils import with_cancellation

from prismoe.server.inspector.inspector import Inspectable, Inspected, InspectionRequest, Inspector

router = APIRouter(prefix="/v1/routing/inspect", tags=["routing"])


@router.get("")
async def inspectable(request: Request) -> Inspectable:
    """Return whether requests can be inspected, how an image is divided into patches, and the limits."""
    facts: Inspectable = request.app.state.inspector.inspectable
    return facts


@router.post("", response_model=None, responses={200: {"model": Inspected}})
@with_cancellation
async def inspect(body: InspectionRequest, raw_request: Request) -> Response:
    """Answer a chat request, and return the experts to which each of its tokens was routed.

    With `stream` the answer consists of vLLM's server-sent events, and then one event `routing`.
    """
    inspector: Inspector = raw_request.app.state.inspector
    if not body.stream:
        answer = await inspector.answer(body)
        return Response(answer.model_dump_json(), media_type="application/json")
    events = inspector.events(body)
    first = await anext(events)  # A refused request raises here, while the answer can still have its status.
    return StreamingResponse(_and_then(first, events), media_type="text/event-stream")


async def _and_then(first: str, others: AsyncGenerator[str, None]) -> AsyncIterator[str]:
    async with aclosing(others):
        yield first
        async for event in others:
            yield event
