"""A model without experts is served like in vLLM, without routing information."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from prismoe.server.commands.client import Client
from prismoe.server.commands.demo import load_report
from tests.model_plugins.in_tree import qwen3_vl
from tests.model_plugins.in_tree.chats import TEXT, TWO_PICTURES, Chat
from tests.model_plugins.in_tree.reference import tokens_alone
from tests.server.in_tree import asking
from tests.server.in_tree.asking import FULL, MAX_TOKENS, VideoFile, ask, body
from tests.server.media.clips import clip
from tests.server.running import Server

pytestmark = pytest.mark.server

VIDEO = Chat((VideoFile.of(clip(20, 10, (64, 64)), "Qwen3VLVideoProcessor"), "Which colours?"))
WHY = (
    "Qwen3VLForConditionalGeneration has no MoE layer that vLLM's MoERunner computes. It is served as vLLM "
    "serves it, and nothing of its routing is shown."
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dense")
    qwen3_vl.MODEL.save(folder)
    return folder


@pytest.fixture(scope="module")
def dense(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with asking.served(checkpoint, tmp_path_factory.mktemp("served") / "log", *FULL) as server:
        yield server


@pytest.fixture
def dense_http(dense: Server) -> Iterator[httpx.Client]:
    with asking.client(dense) as http:
        yield http


@pytest.mark.parametrize("chat", [TEXT, TWO_PICTURES, VIDEO], ids=["text", "pictures", "video"])
def test_tokens_are_those_of_transformers(checkpoint: Path, dense_http: httpx.Client, chat: Chat) -> None:
    assert [ask(dense_http, body(chat))] == tokens_alone(checkpoint, [chat], MAX_TOKENS)


def test_one_sentence_gives_the_reason(dense: Server, dense_http: httpx.Client) -> None:
    assert dense_http.get("/v1/routing").raise_for_status().json() == {
        "source": "model",
        "in_force": "native",
        "switchable": False,
        "architecture": "Qwen3VLForConditionalGeneration",
        "modalities": ["text", "image", "video"],
        "layers": [],
        "not_supported": [WHY],
        "shadow": None,
    }
    assert WHY in dense.output
    assert "Qwen3VLForConditionalGeneration takes text, image, video." in dense.output
    inspectable = dense_http.get("/v1/routing/inspect").raise_for_status().json()
    assert inspectable["refusal"] == WHY
    refused = dense_http.post("/v1/routing/inspect", json=body(TEXT))
    assert (refused.status_code, refused.json()["error"]["message"]) == (501, WHY)


def test_there_are_no_counts(dense_http: httpx.Client) -> None:
    ask(dense_http, body(TWO_PICTURES))
    reported = asking.load(dense_http)
    assert {name for name, lists in reported.items() if lists} == {"modalities"}
    names = {name for name, *_ in asking.scrape(dense_http)}
    assert names == {"prismoe_requests_total", "prismoe_refused_requests_total"}


def test_top_and_the_load_table_give_the_reason(dense: Server) -> None:
    top = asking.top_once(dense)
    said = top.communicate()[0]
    assert top.returncode == 0 and WHY in said and "│" not in said, said
    assert load_report(Client(dense.url)) == WHY
