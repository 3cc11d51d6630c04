"""A small model with as many MoE layers and experts as Qwen3-VL-30B-A3B: everything that is shown works."""

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pytest

from prismoe.server.commands.client import Client
from prismoe.server.commands.demo import load_report
from tests.model_plugins.in_tree import qwen3_vl_moe
from tests.model_plugins.in_tree.chats import TEXT, TWO_PICTURES, Chat
from tests.model_plugins.in_tree.reference import Answer, answers
from tests.server.in_tree import asking
from tests.server.in_tree.asking import FULL, MAX_TOKENS, VideoFile, ask, body, load, scrape_when_read
from tests.server.media.clips import clip
from tests.server.running import Server

pytestmark = pytest.mark.server

LAYERS, EXPERTS, K, MODALITIES = 48, 128, 8, ["text", "image", "video"]
MODEL = replace(
    qwen3_vl_moe.MODEL,
    config=partial(
        qwen3_vl_moe.config,
        num_hidden_layers=LAYERS,
        num_experts=EXPERTS,
        num_experts_per_tok=K,
        moe_intermediate_size=16,  # no matrix is square: its layout would be guessed wrong
    ),
)
CHATS = (
    TEXT,
    TWO_PICTURES,
    Chat((VideoFile.of(clip(20, 10, (64, 64)), "Qwen3VLVideoProcessor"), "Which colours?")),
)
PAGE_S, INSPECTION_S = 1, 30


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    MODEL.save(folder)
    return folder


@pytest.fixture(scope="module")
def expected(checkpoint: Path) -> list[Answer]:
    """Transformers' answers to CHATS."""
    return answers(checkpoint, CHATS, MAX_TOKENS)


@pytest.fixture(scope="module")
def large(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with asking.served(checkpoint, tmp_path_factory.mktemp("served") / "log", *FULL) as server:
        yield server


@pytest.fixture
def large_http(large: Server) -> Iterator[httpx.Client]:
    with asking.client(large) as http:
        yield http


def test_the_routing_in_force(large: Server, large_http: httpx.Client) -> None:
    reported = large_http.get("/v1/routing").raise_for_status().json()
    assert (reported["architecture"], reported["modalities"]) == (
        "Qwen3VLMoeForConditionalGeneration",
        MODALITIES,
    )
    assert [
        (layer["layer"], layer["experts"], layer["top_k"], layer["gate"]) for layer in reported["layers"]
    ] == [(layer, EXPERTS, K, "softmax, renormalised") for layer in range(LAYERS)]
    assert "MoE layers with 128 experts: 48. Their gate (softmax, renormalised) picks 8" in large.output


def test_tokens_and_counts_are_those_of_transformers(
    large_http: httpx.Client, expected: list[Answer]
) -> None:
    before = load(large_http)
    reported = [ask(large_http, body(chat)) for chat in CHATS]
    tokens_LM, experts_LME = asking.since(before, load(large_http))
    assert reported == [(answer.prompt_ids, answer.token_ids) for answer in expected]
    assert np.array_equal(experts_LME, np.sum([answer.counts for answer in expected], axis=0))
    assert experts_LME.shape == (LAYERS, len(MODALITIES), EXPERTS)
    assert (tokens_LM[0] > 0).all() and (tokens_LM == tokens_LM[0]).all()
    assert np.array_equal(experts_LME.sum(axis=2), K * tokens_LM)


@pytest.mark.parametrize("accept", ["text/plain", "application/openmetrics-text"])
def test_metrics_are_updated_soon_and_equal_the_load(large_http: httpx.Client, accept: str) -> None:
    reported = load(large_http)
    samples = scrape_when_read(large_http, reported)
    cells = {key[1:]: value for key, value in samples.items() if key[0] == "prismoe_expert_tokens_total"}
    assert cells == {
        (str(layer), modality, str(expert)): reported["expert_tokens"][layer][number][expert]
        for layer in range(LAYERS)
        for number, modality in enumerate(MODALITIES)
        for expert in range(EXPERTS)
    }
    took = []
    for _ in range(3):
        begun = time.perf_counter()
        page = large_http.get("/metrics", headers={"Accept": accept}).raise_for_status()
        took.append(time.perf_counter() - begun)
    assert min(took) < PAGE_S
    prismoes = [
        line for line in page.text.splitlines() if line.startswith("prismoe_") and "_created" not in line
    ]
    assert 20_000 < len(prismoes) < 26_000


def test_top_shows_the_most_and_the_least_loaded(large: Server, large_http: httpx.Client) -> None:
    top = asking.top_once(large, seconds=2)
    while top.poll() is None:
        for chat in CHATS:
            ask(large_http, body(chat, max_tokens=1))
    message = top.communicate()[0]
    assert top.returncode == 0, message
    rows = [asking.cells(line) for line in message.splitlines() if line.startswith("│")]
    assert [row[:2] for row in rows] == [[str(layer), name] for layer in range(LAYERS) for name in MODALITIES]
    assert {row[3] for row in rows} == {f"{K}.00"}, message


def test_the_load_table_has_a_line_for_each_layer_and_modality(
    large: Server, large_http: httpx.Client
) -> None:
    told = load(large_http)
    _, _, _, *lines, _, sentence = load_report(Client(large.url)).splitlines()
    assert sentence == "The policy in force (native) has no tail tokens."
    assert [line.split()[:3] for line in lines] == [
        [str(layer), modality, str(told["tokens"][layer][number])]
        for layer in range(LAYERS)
        for number, modality in enumerate(MODALITIES)
    ]
    first, counts = lines[1].split(), told["expert_tokens"][0][1]
    assert first[3] == str(np.argmax(counts)) and first[-1] == f"{K}.00"


def test_the_inspector_shows_all_layers(large_http: httpx.Client, expected: list[Answer]) -> None:
    answer, begun = expected[1], time.perf_counter()
    asked = large_http.post("/v1/routing/inspect", json=body(TWO_PICTURES)).raise_for_status()
    assert time.perf_counter() - begun < INSPECTION_S
    routing = asked.json()["routing"]
    modalities = [MODALITIES[modality] for modality in answer.modality_T]
    assert [token["modality"] for token in routing["tokens"]] == modalities
    experts_LTK = np.array([layer["experts"] for layer in routing["layers"]])
    assert np.array_equal(np.sort(experts_LTK), np.sort(answer.experts_LTK))
