"""Inspections without an engine: what is told of recorded rows, what is refused, whose turn it is."""

import asyncio
import json
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import HTTPException
from vllm.config import CompilationMode, CUDAGraphMode

from prismoe.model_plugins.models.patch_grid import PatchGrid
from prismoe.server.inspector.inspection import RecordedRows, inspection
from prismoe.server.inspector.inspector import MOST_WAITING, InspectionRequest, Inspector, what_is_inspectable

SIGLIP = PatchGrid(rows=2, columns=2, tokens=3, first_patch=1, fit="stretch")
FACTS = {"grid": SIGLIP.model_dump(), "request_experts": 4, "moe_layers": 1}
BODY = InspectionRequest(model="m", messages=[{"role": "user", "content": "Hi"}])


def rows(is_vision: list[bool]) -> RecordedRows:
    count = len(is_vision)
    layer = {
        "layer": 1,
        "experts": [[token] for token in range(count)],
        "weights": [[1.0]] * count,
        "tail": [False] * count,
        "router_logits": None,
    }
    return RecordedRows.model_validate(
        {"positions": list(range(count)), "is_vision": is_vision, "layers": [layer]}
    )


def test_images_side_by_side_are_told_apart() -> None:
    told = inspection(rows([False] + [True] * 6 + [False]), SIGLIP, [5] * 7, [6, 7], str)
    places = [(token.segment, token.row, token.column) for token in told.tokens[1:7]]
    assert places == [(0, 0, 1), (0, 1, 0), (0, 1, 1), (1, 0, 1), (1, 1, 0), (1, 1, 1)]
    assert (told.tokens[0].text, told.tokens[7].text) == ("5", "6")
    assert (told.prompt_tokens, told.left_out) == (7, 0)


def test_a_token_computed_ahead_is_not_told() -> None:
    told = inspection(rows([False] * 4), SIGLIP, [5, 6], [7, 8], str)
    assert [token.text for token in told.tokens] == ["5", "6", "7"]
    assert told.layers[0].experts == [[0], [1], [2]]


def test_tokens_that_were_not_recorded_are_counted() -> None:
    told = inspection(rows([False] * 2), SIGLIP, [5, 6, 7], [8, 9], str)
    assert (len(told.tokens), told.prompt_tokens, told.left_out) == (2, 2, 2)


class Tokenizer:
    def decode(self, tokens: list[int]) -> str:
        return str(tokens[0])


class Engine:
    """Answers RPCs, and holds a request until it is let go."""

    def __init__(self, mode: CompilationMode = CompilationMode.NONE, **facts: object) -> None:
        compilation = SimpleNamespace(mode=mode, cudagraph_mode=CUDAGraphMode.NONE)
        self.vllm_config = SimpleNamespace(compilation_config=compilation)
        self.facts = FACTS | facts
        self.calls: list[str] = []
        self.go = asyncio.Event()

    async def ask(self, method: str, *args: Any) -> list[Any]:
        self.calls.append(method)
        return [self.facts]

    async def create_chat_completion(self, request: InspectionRequest) -> Any:
        await self.go.wait()
        raise HTTPException(400, "This is enough.")


async def inspector(engine: Engine) -> Inspector:
    inspectable = await what_is_inspectable(engine, engine.vllm_config)  # type: ignore[arg-type]
    return Inspector(engine, engine, inspectable)  # type: ignore[arg-type]


def refused(engine: Engine, body: InspectionRequest = BODY) -> HTTPException:
    async def ask() -> None:
        await (await inspector(engine)).answer(body)

    with pytest.raises(HTTPException) as refusal:
        asyncio.run(ask())
    return refusal.value


def test_a_compiled_engine_inspects_nothing() -> None:
    engine = Engine(CompilationMode.VLLM_COMPILE)
    refusal = refused(engine)
    assert refusal.status_code == 501 and "--enforce-eager" in refusal.detail
    assert engine.calls == ["prismoe_inspectable"]
    assert asyncio.run(inspector(engine)).inspectable.refusal == refusal.detail


def test_a_dense_checkpoint_has_nothing_to_inspect() -> None:
    assert "no MoE layers" in refused(Engine(moe_layers=0)).detail


def test_inspections_wait_for_their_turn_and_not_in_any_number() -> None:
    async def crowd() -> list[Any]:
        engine = Engine()
        one = await inspector(engine)
        waiting = [asyncio.create_task(one.answer(BODY)) for _ in range(MOST_WAITING + 1)]
        await asyncio.sleep(0.01)
        assert engine.calls.count("prismoe_start_inspection") == 1
        with pytest.raises(HTTPException) as refusal:
            await one.answer(BODY)
        assert refusal.value.status_code == 429
        waiting[1].cancel()  # a client that goes away while it waits
        engine.go.set()
        ends = await asyncio.gather(*waiting, return_exceptions=True)
        for method in ("prismoe_start_inspection", "prismoe_end_inspection"):
            assert engine.calls.count(method) == MOST_WAITING
        with pytest.raises(HTTPException, match="enough"):
            await one.answer(BODY)
        return ends

    ends = asyncio.run(crowd())
    assert [type(end) for end in ends] == [HTTPException, asyncio.CancelledError] + [HTTPException] * 3


class StreamingEngine(Engine):
    """Streams an answer of three tokens, or fails behind the first one."""

    renderer = SimpleNamespace(get_tokenizer=Tokenizer)
    fails = False

    async def ask(self, method: str, *args: Any) -> list[Any]:
        await super().ask(method, *args)
        return [rows([False] * 4).model_dump() if method == "prismoe_inspected_rows" else self.facts]

    async def create_chat_completion(self, request: InspectionRequest) -> AsyncGenerator[str, None]:
        return self.chunks()

    async def chunks(self) -> AsyncGenerator[str, None]:
        for token in (7, 8, 9):
            await asyncio.sleep(0)
            yield f"data: {json.dumps({'prompt_token_ids': [5, 6], 'choices': [{'token_ids': [token]}]})}\n\n"
            if self.fails:
                raise RuntimeError("The engine died.")
            if token == 8:
                await self.go.wait()
        yield "data: [DONE]\n\n"


STREAMED = BODY.model_copy(update={"stream": True})


def test_a_client_that_reads_slowly_keeps_no_other_from_its_turn() -> None:
    async def slow_and_quick() -> tuple[list[str], list[str]]:
        engine = StreamingEngine()
        engine.go.set()
        one = await inspector(engine)
        slow = one.events(STREAMED)
        first = await anext(slow)  # It reads no more for now.
        quick = [event async for event in one.events(STREAMED)]
        assert engine.calls.count("prismoe_end_inspection") == 2
        return [first, *[event async for event in slow]], quick

    async def within_a_second() -> tuple[list[str], list[str]]:
        return await asyncio.wait_for(slow_and_quick(), 1)

    slow, quick = asyncio.run(within_a_second())
    assert (
        len(quick) == 5 and quick[3].startswith("event: routing\ndata: ") and quick[4] == "data: [DONE]\n\n"
    )
    assert slow == quick


def test_an_inspection_ends_with_its_client() -> None:
    async def leave() -> list[str]:
        engine = StreamingEngine()
        events = (await inspector(engine)).events(STREAMED)
        await anext(events)
        await events.aclose()
        return engine.calls

    calls = asyncio.run(leave())
    assert calls == ["prismoe_inspectable", "prismoe_start_inspection", "prismoe_end_inspection"]


def test_what_an_answer_fails_by_is_told() -> None:
    async def fail() -> None:
        engine = StreamingEngine()
        engine.fails = True
        events = (await inspector(engine)).events(STREAMED)
        await anext(events)
        with pytest.raises(RuntimeError, match="The engine died"):
            await anext(events)
        assert engine.calls[-1] == "prismoe_end_inspection"

    asyncio.run(fail())
