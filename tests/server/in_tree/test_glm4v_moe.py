"""GLM-4.5V, a model without special code in prismoe: answers and counts are transformers'."""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from prismoe.server.commands.client import Client
from prismoe.server.commands.demo import load_report
from tests.model_plugins.in_tree.chats import TEXT, TWO_PICTURES, Chat
from tests.model_plugins.in_tree.checkpoints import make_checkpoint
from tests.model_plugins.in_tree.reference import Answer, answers
from tests.server.in_tree import asking
from tests.server.in_tree.asking import FULL, MAX_TOKENS, MODEL, VideoFile, ask, body, load, scrape_when_read
from tests.server.media.clips import clip
from tests.server.running import Command, Server

pytestmark = pytest.mark.server

VIDEO = Chat((VideoFile.of(clip(20, 10, (64, 64)), "Glm4vVideoProcessor"), "Which colours?"))
CHATS = (TEXT, TWO_PICTURES, VIDEO)
MODALITIES, LAYERS, EXPERTS, K = ["text", "image", "video"], [1, 2], 8, 3

SHADOW = {"policy": "ltdr", "threshold": 0.0, "tail_experts": 2, "text_experts": 1}
"""A threshold that makes all image tokens tail tokens, since no gate's probabilities are all equal."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("glm4v-moe", tmp_path_factory.mktemp("glm"))


@pytest.fixture(scope="module")
def expected(checkpoint: Path) -> list[Answer]:
    """Transformers' answers to CHATS."""
    return answers(checkpoint, CHATS, MAX_TOKENS)


@pytest.fixture(scope="module")
def glm(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with asking.served(checkpoint, tmp_path_factory.mktemp("served") / "log", *FULL) as server:
        yield server


@pytest.fixture
def glm_http(glm: Server) -> Iterator[httpx.Client]:
    with asking.client(glm) as http:
        yield http


def tokens_of(*reported: Answer) -> np.ndarray:
    """The number of their computed tokens of each modality."""
    return np.bincount(np.concatenate([answer.modality_T for answer in reported]), minlength=len(MODALITIES))


def counts_of(reported: Sequence[Answer]) -> np.ndarray:
    """The counts as `[layer, modality, expert]`, by MoE layer."""
    return np.sum([answer.counts for answer in reported], axis=0)


def test_the_loader_chose_some_of_the_frames(expected: list[Answer]) -> None:
    video = VIDEO.videos[0].metadata()
    assert (video["total_num_frames"], video["frames_indices"]) == (20, [0, 5, 10, 15])
    assert (tokens_of(expected[2]) > 0).tolist() == [True, False, True]


@pytest.mark.parametrize(("stream", "at_once"), [((False,), 1), ((True,), 1), ((False, True), 6)])
def test_tokens_and_counts_are_those_of_transformers(
    glm_http: httpx.Client, expected: list[Answer], stream: tuple[bool, ...], at_once: int
) -> None:
    asked = [body(chat, stream=streamed) for streamed in (*stream, *stream) for chat in CHATS]
    before = load(glm_http)
    with ThreadPoolExecutor(at_once) as pool:
        reported = list(pool.map(lambda request: ask(glm_http, request), asked))
    tokens_LM, experts_LME = asking.since(before, load(glm_http))
    times = 2 * len(stream)
    assert reported == [(answer.prompt_ids, answer.token_ids) for answer in expected] * times
    assert tokens_LM.tolist() == [(times * tokens_of(*expected)).tolist()] * len(LAYERS)
    assert np.array_equal(experts_LME, times * counts_of(expected))


def test_the_routing_in_force(glm: Server, glm_http: httpx.Client) -> None:
    layer = {
        "experts": EXPERTS,
        "top_k": K,
        "gate": "sigmoid, with a bias, in the best 2 of 4 groups, renormalised",
        "kernel": "CPUUnquantizedExperts",
        "policy": {"policy": "native"},
        "sources": {"policy": "model"},
    }
    reported = glm_http.get("/v1/routing").raise_for_status().json()
    assert reported == {
        "source": "model",
        "in_force": "native",
        "switchable": False,
        "architecture": "Glm4vMoeForConditionalGeneration",
        "modalities": MODALITIES,
        "layers": [{"layer": index} | layer for index in LAYERS],
        "not_supported": [],
        "shadow": None,
    }
    assert "Glm4vMoeForConditionalGeneration takes text, image, video." in glm.output


def test_metrics_have_the_load_by_modality(glm_http: httpx.Client, expected: list[Answer]) -> None:
    before = load(glm_http)
    begun = scrape_when_read(glm_http, before)
    for chat in CHATS:
        ask(glm_http, body(chat))
    reported = load(glm_http)
    samples = scrape_when_read(glm_http, reported)

    def rise(*key: str) -> float:
        return samples[key] - begun[key]

    for modality, tokens in zip(MODALITIES, tokens_of(*expected), strict=True):
        assert rise("prismoe_tokens_total", modality) == tokens
        assert rise("prismoe_routed_tokens_total", modality) == len(LAYERS) * tokens
        assert rise("prismoe_used_experts_total", modality) == len(LAYERS) * K * tokens
        assert rise("prismoe_routing_entropy_nats_count", modality) == len(LAYERS) * tokens
        assert rise("prismoe_token_experts_bucket", modality, "2.0") == 0
        assert rise("prismoe_token_experts_bucket", modality, "3.0") == len(LAYERS) * tokens
        assert (
            0 < rise("prismoe_routing_entropy_nats_sum", modality) <= len(LAYERS) * tokens * np.log(EXPERTS)
        )
    counts = counts_of(expected)
    cells = {key[1:]: value for key, value in samples.items() if key[0] == "prismoe_expert_tokens_total"}
    assert len(cells) == len(LAYERS) * len(MODALITIES) * EXPERTS
    for (layer, modality, expert), value in cells.items():
        place, number = LAYERS.index(int(layer)), MODALITIES.index(modality)
        assert value == reported["expert_tokens"][place][number][int(expert)]
        assert (
            rise("prismoe_expert_tokens_total", layer, modality, expert) == counts[place, number, int(expert)]
        )
    assert rise("prismoe_requests_total", "default") == len(CHATS)
    assert samples[("prismoe_routing_info", "native", "model")] == 1
    # A choice by groups has no order of all experts, and so no near ties.
    assert not [key for key in samples if "near_ties" in key[0]]


@pytest.mark.parametrize("number", [1, 2], ids=["pictures", "video"])
def test_the_inspector_shows_the_experts_of_each_token(
    glm_http: httpx.Client, expected: list[Answer], number: int
) -> None:
    answer = expected[number]
    reported = glm_http.post("/v1/routing/inspect", json=body(CHATS[number])).raise_for_status().json()
    assert reported["completion"]["choices"][0]["token_ids"] == answer.token_ids
    routing = reported["routing"]
    assert routing["prompt_tokens"] == len(answer.prompt_ids) and routing["left_out"] == 0
    modalities = [token["modality"] for token in routing["tokens"]]
    assert modalities == [MODALITIES[modality] for modality in answer.modality_T]
    assert [layer["layer"] for layer in routing["layers"]] == LAYERS
    for layer, experts_TK in zip(routing["layers"], answer.experts_LTK, strict=True):
        assert np.array_equal(np.sort(layer["experts"]), np.sort(experts_TK))
        assert np.all(np.diff(layer["weights"]) <= 0) and np.min(layer["weights"]) > 0
        assert np.allclose(np.sum(layer["weights"], axis=1), 1)
    places = [
        (token["segment"], token["frame"], token["row"], token["column"])
        for token in routing["tokens"]
        if token["modality"] != "text"
    ]
    assert places == [
        (segment, frame, row, column)
        for segment, one in enumerate(routing["media"])
        for frame in range(one["frames"])
        for row in range(one["rows"])
        for column in range(one["columns"])
    ]


def test_top_and_the_load_table_show_it(glm: Server, glm_http: httpx.Client) -> None:
    top = asking.top_once(glm, seconds=2)
    while top.poll() is None:
        for chat in CHATS:
            ask(glm_http, body(chat, max_tokens=1))
    said = top.communicate()[0]
    assert top.returncode == 0, said
    rows = [asking.cells(line) for line in said.splitlines() if line.startswith("│")]
    assert [row[:2] for row in rows] == [[str(layer), name] for layer in LAYERS for name in MODALITIES]
    assert [row[3] for row in rows] == [f"{K}.00"] * len(rows), said
    table = load_report(Client(glm.url))
    assert table.splitlines()[-1] == "The policy in force (native) has no tail tokens."
    assert [line.split()[:2] for line in table.splitlines()[3:9]] == [row[:2] for row in rows]


@pytest.mark.parametrize("chat", [TEXT, TWO_PICTURES], ids=["text", "pictures"])
def test_a_request_cannot_choose_its_routing_here(glm_http: httpx.Client, chat: Chat) -> None:
    asked: dict[str, Any] = body(chat, mm_processor_kwargs={"routing": {"tail_experts": 3}})
    refused = glm_http.post("/v1/chat/completions", json=asked)
    assert refused.status_code == 400
    assert refused.json()["error"]["message"] == (
        "mm_processor_kwargs.routing is only for MoE-LLaVA models, and this is another: leave it out."
    )


def test_an_impossible_policy_is_refused_at_the_start(checkpoint: Path, tmp_path: Path) -> None:
    options = ("--dtype", "float32", "--port", "0", "--routing", '{"policy": "gmm", "top_k": 2}')
    command = Command(tmp_path / "log", "serve", str(checkpoint), "--verbose", *options)
    assert command.wait() == 1
    assert command.output.splitlines()[-1] == (
        "prismoe: The policy gmm has its own router, which this model was not trained with: use one of "
        "topk, ltdr, modality_groups, equiroute, dual_threshold, entropy, steer, or native."
    )
    assert "Traceback" not in command.output and "Starting to load model" not in command.output


@pytest.fixture(scope="module")
def shadowed(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with summary metrics, the V2 runner, which GPUs have, and a shadow policy."""
    folder = tmp_path_factory.mktemp("shadowed")
    (folder / "shadow.json").write_text(json.dumps(SHADOW))
    options = ("--verbose", "--expert-load-interval", "0.2", "--shadow", f"@{folder / 'shadow.json'}")
    with asking.served(checkpoint, folder / "log", *options, runner="v2") as server:
        yield server


@pytest.fixture
def shadowed_http(shadowed: Server) -> Iterator[httpx.Client]:
    with asking.client(shadowed) as http:
        yield http


def test_the_summary_has_no_layers_and_the_same_tokens(
    shadowed: Server, shadowed_http: httpx.Client, expected: list[Answer]
) -> None:
    assert "Using V2 Model Runner" in shadowed.output
    reported = [ask(shadowed_http, body(chat)) for chat in CHATS]
    assert reported == [(answer.prompt_ids, answer.token_ids) for answer in expected]
    counted = load(shadowed_http)
    samples = scrape_when_read(shadowed_http, counted)
    labels = shadowed_http.get("/metrics").text
    tokens = tokens_of(*expected).tolist()
    assert counted["tokens"] == [tokens] * len(LAYERS)
    assert np.array_equal(counted["expert_tokens"], counts_of(expected))
    assert [samples[("prismoe_tokens_total", name)] for name in MODALITIES] == tokens
    assert f'prismoe_tokens_total{{modality="video",model_name="{MODEL}"}}' in labels
    prismoes = [line for line in labels.splitlines() if line.startswith("prismoe_")]
    assert not [line for line in prismoes if "layer=" in line or "expert=" in line]


def test_the_uses_of_the_shadow(shadowed: Server, shadowed_http: httpx.Client) -> None:
    reported = shadowed_http.get("/v1/routing").raise_for_status().json()
    assert [layer["policy"] for layer in reported["layers"]] == [{"policy": "native"}] * len(LAYERS)
    for layer, shadow in zip(reported["layers"], reported["shadow"], strict=True):
        assert shadow["policy"].items() >= SHADOW.items() and shadow["sources"]["threshold"] == "--shadow"
        assert [shadow[name] for name in ("layer", "gate")] == [layer[name] for name in ("layer", "gate")]
    assert (
        "The shadow policy is ltdr. Its choices are counted and not used. MoE layers: 2." in shadowed.output
    )
    before = load(shadowed_http)
    ask(shadowed_http, body(TWO_PICTURES))
    counted = load(shadowed_http)
    tokens_LM, used_LME = asking.since(before["shadow"], counted["shadow"])
    assert tokens_LM.tolist() == asking.since(before, counted)[0].tolist()
    assert used_LME.sum(axis=2).tolist() == (tokens_LM * [1, 2, 0]).tolist()
    samples = scrape_when_read(shadowed_http, counted)
    for place, name in enumerate(MODALITIES):
        assert samples[("prismoe_shadow_used_experts_total", name)] == np.sum(
            np.array(counted["shadow"]["expert_tokens"])[:, place]
        )
        assert samples[("prismoe_used_experts_total", name)] == K * np.sum(counted["tokens"], axis=0)[place]
    assert samples[("prismoe_shadow_vision_tail_tokens_total",)] == sum(counted["shadow"]["tail_tokens"])
