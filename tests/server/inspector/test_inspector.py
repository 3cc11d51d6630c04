"""Inspections without an engine: the use of recorded rows, the refusals, and the queue."""

import asyncio
import json
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import HTTPException
from vllm.config import CompilationMode, CUDAGraphMode

from prismoe.model_plugins.models.patch_grid import PatchGrid
from prismoe.server.inspector.inspection import Inspection, RecordedRows, inspection
from prismoe.server.inspector.inspector import (
    MAX_WAITING,
    REPLACED,
    InspectionRequest,
    Inspector,
    find_inspectable,
)

SIGLIP = PatchGrid(rows=2, columns=2, tokens=3, first_patch=1, fit="stretch")
FACTS = {"grid": SIGLIP.model_dump(), "request_experts": 4, "moe_layers": 1}
BODY = InspectionRequest(model="m", messages=[{"role": "user", "content": "Hi"}])


def rows(modalities: list[str], *media: dict[str, Any]) -> RecordedRows:
    count = len(modalities)
    layer = {
        "layer": 1,
        "experts": [[token] for token in range(count)],
        "weights": [[1.0]] * count,
        "tail": [False] * count,
        "router_logits": None,
    }
    return RecordedRows.model_validate(
        {"positions": list(range(count)), "modalities": modalities, "media": media, "layers": [layer]}
    )


def medium(
    offset: int, length: int, grid: tuple[int, int, int] | None = None, modality: str = "image"
) -> dict[str, Any]:
    return {"modality": modality, "offset": offset, "length": length, "grid": grid}


def places(reported: Inspection) -> list[tuple[int | None, ...]]:
    return [
        (token.segment, token.frame, token.row, token.column)
        for token in reported.tokens
        if token.modality != "text"
    ]


def test_adjacent_images_are_distinguished() -> None:
    recorded = rows(["text", *["image"] * 6, "text"], medium(1, 3), medium(4, 3))
    reported = inspection(recorded, SIGLIP, [5] * 7, [6, 7], str)
    assert places(reported) == [
        (0, 0, 0, 1),
        (0, 0, 1, 0),
        (0, 0, 1, 1),
        (1, 0, 0, 1),
        (1, 0, 1, 0),
        (1, 0, 1, 1),
    ]
    assert (reported.tokens[0].text, reported.tokens[7].text) == ("5", "6")
    assert (reported.prompt_tokens, reported.left_out) == (7, 0)
    assert [(one.frames, one.rows, one.columns) for one in reported.media] == [(1, 2, 2)] * 2


def test_a_class_token_has_no_place() -> None:
    grid = PatchGrid(rows=1, columns=2, tokens=3, first_patch=-1, fit="crop")
    reported = inspection(rows(["image"] * 3, medium(0, 3)), grid, [5] * 3, [6], str)
    assert places(reported) == [(0, None, None, None), (0, 0, 0, 0), (0, 0, 0, 1)]


def test_each_image_has_its_own_grid() -> None:
    recorded = rows(
        ["image", "image", "text", *["image"] * 4], medium(0, 2, (1, 1, 2)), medium(3, 4, (1, 2, 2))
    )
    reported = inspection(recorded, None, [5] * 7, [6], str)
    assert places(reported) == [
        (0, 0, 0, 0),
        (0, 0, 0, 1),
        (1, 0, 0, 0),
        (1, 0, 0, 1),
        (1, 0, 1, 0),
        (1, 0, 1, 1),
    ]
    assert reported.grid is None
    assert [(one.frames, one.rows, one.columns) for one in reported.media] == [(1, 1, 2), (1, 2, 2)]


def test_separators_between_the_frames_of_a_video_are_text() -> None:
    frame = ["text", "video", "video"]
    reported = inspection(rows(frame * 2, medium(0, 6, (2, 1, 2), "video")), None, [5] * 6, [6], str)
    assert places(reported) == [(0, 0, 0, 0), (0, 0, 0, 1), (0, 1, 0, 0), (0, 1, 0, 1)]
    assert [token.text for token in reported.tokens] == ["5", None, None, "5", None, None]


def test_a_sound_inside_the_range_of_its_video_is_distinguished() -> None:
    recorded = rows(
        ["video", "audio", "video", "audio"], medium(0, 4, (2, 1, 1), "video"), medium(0, 4, None, "audio")
    )
    reported = inspection(recorded, None, [5] * 4, [6], str)
    assert places(reported) == [(0, 0, 0, 0), (1, None, None, None), (0, 1, 0, 0), (1, None, None, None)]
    assert [one.modality for one in reported.media] == ["video", "audio"]


def test_without_a_grid_of_the_processor_there_are_no_places() -> None:
    reported = inspection(rows(["image"] * 2, medium(0, 2)), None, [5] * 2, [6], str)
    assert places(reported) == [(0, None, None, None)] * 2
    assert (reported.media[0].frames, reported.media[0].rows, reported.media[0].columns) == (None, None, None)


def test_a_token_computed_in_advance_is_not_listed() -> None:
    reported = inspection(rows(["text"] * 4), SIGLIP, [5, 6], [7, 8], str)
    assert [token.text for token in reported.tokens] == ["5", "6", "7"]
    assert reported.layers[0].experts == [[0], [1], [2]]
    assert reported.left_out == 0


def test_tokens_that_were_not_recorded_are_counted() -> None:
    reported = inspection(rows(["text"] * 2), SIGLIP, [5, 6, 7], [8, 9], str)
    assert (len(reported.tokens), reported.prompt_tokens, reported.left_out) == (2, 2, 2)


def test_weights_that_the_kernel_does_not_report_are_none() -> None:
    recorded = rows(["text"] * 2)
    layer = recorded.layers[0].model_copy(update={"weights": None})
    reported = inspection(recorded.model_copy(update={"layers": [layer]}), None, [5], [6, 7], str)
    assert reported.layers[0].weights is None and reported.layers[0].experts == [[0], [1]]


class Tokenizer:
    def decode(self, tokens: list[int]) -> str:
        return str(tokens[0])


class Engine:
    """Answers RPCs, and holds a request until it is released."""

    def __init__(
        self,
        mode: CompilationMode = CompilationMode.NONE,
        graphs: CUDAGraphMode = CUDAGraphMode.NONE,
        **facts: object,
    ) -> None:
        compilation = SimpleNamespace(mode=mode, cudagraph_mode=graphs)
        self.vllm_config = SimpleNamespace(compilation_config=compilation)
        self.facts = FACTS | facts
        self.calls: list[str] = []
        self.arguments: list[tuple[Any, ...]] = []
        self.requests: list[InspectionRequest] = []
        self.go = asyncio.Event()

    async def ask(self, method: str, *args: Any) -> list[Any]:
        self.calls.append(method)
        self.arguments.append(args)
        return [self.facts]

    async def create_chat_completion(self, request: InspectionRequest) -> Any:
        self.requests.append(request)
        await self.go.wait()
        raise HTTPException(400, "This is enough.")


async def inspector(engine: Engine, *not_supported: str) -> Inspector:
    inspectable = await find_inspectable(engine, engine.vllm_config, not_supported)  # type: ignore[arg-type]
    return Inspector(engine, engine, inspectable)  # type: ignore[arg-type]


def refused(engine: Engine, *not_supported: str, body: InspectionRequest = BODY) -> HTTPException:
    async def ask() -> None:
        await (await inspector(engine, *not_supported)).answer(body)

    with pytest.raises(HTTPException) as refusal:
        asyncio.run(ask())
    return refusal.value


WITH_LOGITS = BODY.model_copy(update={"router_logits": True})


@pytest.mark.parametrize(
    ("mode", "graphs"),
    [(CompilationMode.VLLM_COMPILE, CUDAGraphMode.NONE), (CompilationMode.NONE, CUDAGraphMode.FULL)],
)
def test_a_compiled_engine_has_no_router_logits(mode: CompilationMode, graphs: CUDAGraphMode) -> None:
    engine = Engine(mode, graphs)
    refusal = refused(engine, body=WITH_LOGITS)
    assert refusal.status_code == 400
    assert "leave router_logits out" in refusal.detail and "--enforce-eager" in refusal.detail
    assert engine.calls == ["prismoe_inspectable"]


def test_a_compiled_engine_is_inspected_without_logits() -> None:
    engine = Engine(CompilationMode.VLLM_COMPILE)
    engine.go.set()
    assert refused(engine).detail == "This is enough."
    inspectable = asyncio.run(inspector(engine)).inspectable
    assert inspectable.refusal is None and not inspectable.router_logits


@pytest.mark.parametrize("body", [BODY, WITH_LOGITS])
def test_the_engine_keeps_logits_if_they_are_requested(body: InspectionRequest) -> None:
    engine = Engine()
    engine.go.set()
    refused(engine, body=body)
    _, most_tokens, with_logits = engine.arguments[engine.calls.index("prismoe_start_inspection")]
    assert (most_tokens, with_logits) == (8192, body.router_logits)


def test_no_token_of_an_inspection_comes_from_the_prefix_cache() -> None:
    engine = Engine()
    engine.go.set()
    for _ in range(2):
        refused(engine, body=BODY.model_copy(update={"cache_salt": "the client's"}))
    first, second = (request.cache_salt for request in engine.requests)
    assert first and second and len({first, second, "the client's"}) == 3


def test_a_dense_checkpoint_cannot_be_inspected() -> None:
    refusal = refused(Engine(moe_layers=0))
    assert refusal.status_code == 501
    assert refusal.detail == "This checkpoint has no MoE layers, so there is no routing to inspect."


def test_a_model_whose_layers_are_not_observed_gives_the_reason() -> None:
    assert refused(Engine(moe_layers=0, grid=None), "It can't be seen.").detail == "It can't be seen."


def test_other_unsupported_features_do_not_prevent_inspections() -> None:
    inspectable = asyncio.run(inspector(Engine(grid=None), "Policies don't run on it.")).inspectable
    assert inspectable.refusal is None and inspectable.grid is None


def test_a_limited_number_of_inspections_wait_for_their_turn() -> None:
    async def crowd() -> list[Any]:
        engine = Engine()
        one = await inspector(engine)
        waiting = [asyncio.create_task(one.answer(BODY)) for _ in range(MAX_WAITING + 1)]
        await asyncio.sleep(0.01)
        assert engine.calls.count("prismoe_start_inspection") == 1
        with pytest.raises(HTTPException) as refusal:
            await one.answer(BODY)
        assert refusal.value.status_code == 429
        waiting[1].cancel()  # a client that leaves while it waits
        engine.go.set()
        ends = await asyncio.gather(*waiting, return_exceptions=True)
        for method in ("prismoe_start_inspection", "prismoe_end_inspection"):
            assert engine.calls.count(method) == MAX_WAITING
        with pytest.raises(HTTPException, match="enough"):
            await one.answer(BODY)
        return ends

    ends = asyncio.run(crowd())
    assert [type(end) for end in ends] == [HTTPException, asyncio.CancelledError] + [HTTPException] * 3


class StreamingEngine(Engine):
    """Streams an answer of three tokens, or fails after the first one."""

    renderer = SimpleNamespace(get_tokenizer=Tokenizer)
    fails = False

    async def ask(self, method: str, *args: Any) -> list[Any]:
        await super().ask(method, *args)
        return [rows(["text"] * 4).model_dump() if method == "prismoe_inspected_rows" else self.facts]

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


def test_a_client_that_reads_slowly_delays_no_other() -> None:
    async def slow_and_quick() -> tuple[list[str], list[str]]:
        engine = StreamingEngine()
        engine.go.set()
        one = await inspector(engine)
        slow = one.events(STREAMED)
        first = await anext(slow)  # It stops reading here.
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


class ReplacedEngine(StreamingEngine):
    """Another API server has begun an inspection, so that the worker records another request."""

    async def ask(self, method: str, *args: Any) -> list[Any]:
        reported = await super().ask(method, *args)
        return [None] if method == "prismoe_inspected_rows" else reported


def test_a_replaced_inspection_is_reported() -> None:
    async def inspect() -> None:
        engine = ReplacedEngine()
        engine.go.set()
        events = (await inspector(engine)).events(STREAMED)
        with pytest.raises(HTTPException) as refusal:
            async for _ in events:
                pass
        assert (refusal.value.status_code, refusal.value.detail) == (503, REPLACED)
        assert engine.calls[-1] == "prismoe_end_inspection"

    asyncio.run(inspect())


def test_an_inspection_ends_with_its_client() -> None:
    async def leave() -> list[str]:
        engine = StreamingEngine()
        events = (await inspector(engine)).events(STREAMED)
        await anext(events)
        await events.aclose()
        return engine.calls

    calls = asyncio.run(leave())
    assert calls == ["prismoe_inspectable", "prismoe_start_inspection", "prismoe_end_inspection"]


def test_the_error_of_an_answer_is_reported() -> None:
    async def fail() -> None:
        engine = StreamingEngine()
        engine.fails = True
        events = (await inspector(engine)).events(STREAMED)
        await anext(events)
        with pytest.raises(RuntimeError, match="The engine died"):
            await anext(events)
        assert engine.calls[-1] == "prismoe_end_inspection"

    asyncio.run(fail())
