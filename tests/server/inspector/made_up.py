"""A made-up model of 48 layers with 128 experts that answers the inspector's page without an engine."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.testclient import TestClient
from playwright.sync_api import Page, Route

from prismoe.server.inspector import page as inspector_page

URL = "http://inspector.test"
MODEL = "Qwen/Qwen3-VL-235B-A22B-Instruct-of-a-long-name"
LAYERS, EXPERTS, TOP_K = 48, 128, 8
MODALITIES = ("text", "image", "video", "audio")
WEIGHTS = [0.3, 0.2, 0.15, 0.1, 0.1, 0.05, 0.05, 0.05]

FACTS = {
    "refusal": None,
    "router_logits": False,
    "grid": None,
    "request_experts": 0,
    "moe_layers": LAYERS,
    "most_tokens": 8192,
    "most_new_tokens": 512,
}
LAYER = {"experts": EXPERTS, "top_k": TOP_K, "gate": "softmax, renormalised", "kernel": "CPUExperts"}
NATIVE = {"policy": {"policy": "native"}, "sources": {"policy": "model"}}
ROUTING = {
    "source": "model",
    "architecture": "Qwen3VLMoeForConditionalGeneration",
    "modalities": MODALITIES,
    "layers": [{"layer": layer, **LAYER, **NATIVE} for layer in range(LAYERS)],
    "not_supported": [],
}


def experts_of(token: int, layer: int) -> list[int]:
    """The experts of a token, best first."""
    return [(3 * token + 5 * layer + 6 * slot) % EXPERTS for slot in range(TOP_K)]


def medium(modality: str, *grid: int) -> dict[str, Any]:
    """An image, a video or a sound. Without a grid, its tokens have no places."""
    frames, rows, columns = grid or (None, None, None)
    return {"modality": modality, "frames": frames, "rows": rows, "columns": columns}


def text(word: str) -> dict[str, Any]:
    """A token of text."""
    return {
        "modality": "text",
        "text": word,
        "segment": None,
        "frame": None,
        "row": None,
        "column": None,
    }


def patches(modality: str, *grid: int) -> list[dict[str, Any]]:
    """The tokens of the first medium of a request."""
    frames, rows, columns = grid
    token = {"modality": modality, "text": None, "segment": 0}
    return [
        {**token, "frame": frame, "row": row, "column": column}
        for frame in range(frames)
        for row in range(rows)
        for column in range(columns)
    ]


def inspection(media: Sequence[Mapping[str, Any]], tokens: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The inspection of a request with these tokens. The last one is the answer's."""
    return {
        "grid": None,
        "media": media,
        "prompt_tokens": len(tokens) - 1,
        "tokens": [{"position": position, **token} for position, token in enumerate(tokens)],
        "layers": [
            {
                "layer": layer,
                "experts": [experts_of(token, layer) for token in range(len(tokens))],
                "weights": [WEIGHTS] * len(tokens),
                "tail": [False] * len(tokens),
                "router_logits": None,
            }
            for layer in range(LAYERS)
        ],
        "left_out": 0,
    }


def load(reported: Mapping[str, Any]) -> dict[str, Any]:
    """The server's load, from this request only."""
    modalities = [token["modality"] for token in reported["tokens"]]
    counts = [
        [
            [
                sum(
                    expert in experts
                    for experts, of in zip(layer["experts"], modalities, strict=True)
                    if of == modality
                )
                for expert in range(EXPERTS)
            ]
            for modality in MODALITIES
        ]
        for layer in reported["layers"]
    ]
    tokens = [modalities.count(modality) for modality in MODALITIES]
    return {"modalities": MODALITIES, "expert_tokens": counts, "tokens": [tokens] * LAYERS}


def serve(
    page: Page, reported: Mapping[str, Any], routing: Mapping[str, Any] = ROUTING
) -> list[dict[str, Any]]:
    """Answer all requests of the page. The list gets the requests to inspect."""
    app = FastAPI()
    inspector_page.add_to(app)
    files = TestClient(app, base_url=URL)
    chunk = {"choices": [{"delta": {"content": "A cat."}}]}
    events = f"data: {json.dumps(chunk)}\n\nevent: routing\ndata: {json.dumps(reported)}\n\ndata: [DONE]\n\n"
    answers = {
        "/v1/models": {"data": [{"id": MODEL}]},
        "/v1/routing": routing,
        "/v1/routing/inspect": FACTS,
        "/v1/routing/load": load(reported),
    }
    asked: list[dict[str, Any]] = []

    def answer(route: Route) -> None:
        path = route.request.url.removeprefix(URL)
        if route.request.method == "POST":
            asked.append(json.loads(route.request.post_data or ""))
            route.fulfill(body=events, content_type="text/event-stream")
        elif path in answers:
            route.fulfill(json=answers[path])
        else:
            found = files.get(path)
            route.fulfill(status=found.status_code, headers=dict(found.headers), body=found.content)

    page.route("**/*", answer)
    page.goto(f"{URL}/inspector")
    return asked
