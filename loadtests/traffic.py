"""Makes, sends and times streamed chat requests with seeded pictures and questions."""

import asyncio
import base64
import io
import json
import os
import random
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
from PIL import Image

PICTURE_SIDE = 224
QUESTIONS = ["What is this?", "What kind of thing is shown in this picture?", "Is this an animal?"]


@dataclass(frozen=True)
class Timing:
    """The seconds from a request's start to its first token, and its number of tokens."""

    first_token_s: float
    tokens: int


def picture(seed: int) -> str:
    """A picture of random coloured squares as a data URL; the same seed gives the same picture."""
    cells = Image.frombytes("RGB", (8, 8), random.Random(seed).randbytes(8 * 8 * 3))
    png = io.BytesIO()
    cells.resize((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.NEAREST).save(png, "PNG")
    return "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()


def chat(pictures: Sequence[str], question: str, max_tokens: int) -> dict[str, Any]:
    """An OpenAI chat request whose answer always has `max_tokens` tokens."""
    images = [{"type": "image_url", "image_url": {"url": url}} for url in pictures]
    return {
        "messages": [{"role": "user", "content": [*images, {"type": "text", "text": question}]}],
        "temperature": 0,
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def send(client: httpx.AsyncClient, request: dict[str, Any]) -> Timing:
    """Send one request and time it. Raises httpx.HTTPStatusError if it is refused."""
    start, first, tokens = time.perf_counter(), None, 0
    async with client.stream("POST", "/v1/chat/completions", json=request) as response:
        if response.is_error:
            await response.aread()
            raise httpx.HTTPStatusError(response.text, request=response.request, response=response)
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            if first is None and event["choices"] and event["choices"][0]["delta"].get("content"):
                first = time.perf_counter()
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
    return Timing((first or time.perf_counter()) - start, tokens)


async def send_all(
    client: httpx.AsyncClient, requests: Sequence[dict[str, Any]], at_once: int
) -> list[Timing]:
    """Send the requests in order, with at most `at_once` of them at a time."""
    free = asyncio.Semaphore(at_once)

    async def one(request: dict[str, Any]) -> Timing:
        async with free:
            return await send(client, request)

    return await asyncio.gather(*(one(request) for request in requests))


def report(measurement: Coroutine[Any, Any, dict[str, Any]]) -> None:
    """Print a measurement's result as JSON. Exits with a message if a server does not answer."""
    try:
        print(json.dumps(asyncio.run(measurement), indent=2))
    except httpx.HTTPError as error:
        raise SystemExit(f"The server did not answer: {error}") from error


def client(url: str) -> httpx.AsyncClient:
    """A client of the server at `url`, with the key in OPENAI_API_KEY if it is set."""
    return httpx.AsyncClient(base_url=url, timeout=300, headers=authorization("OPENAI_API_KEY"))


def authorization(*variables: str) -> dict[str, str]:
    """The header with the key in the first of these environment variables that is set."""
    keys = [key for variable in variables if (key := os.environ.get(variable))]
    return {"Authorization": f"Bearer {keys[0]}"} if keys else {}
