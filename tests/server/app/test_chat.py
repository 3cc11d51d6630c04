"""OpenAI's own client with the server."""

from pathlib import Path

import httpx
import pytest
from openai import OpenAI

from tests.server.conftest import image_part, url_part, user

pytestmark = pytest.mark.usefixtures("server")

MODEL = "prismoji"
QUESTION = "What is this?"


def answer(client: OpenAI, *content: dict[str, object] | str) -> str:
    completion = client.chat.completions.create(
        model=MODEL,
        messages=user(*content),
        temperature=0,
        max_tokens=8,
    )
    return completion.choices[0].message.content or ""


def test_unstreamed_image_chat_has_logprobs_and_usage(client: OpenAI, picture: bytes) -> None:
    completion = client.chat.completions.create(
        model=MODEL,
        messages=user(image_part(picture), QUESTION),
        temperature=0,
        max_tokens=8,
        logprobs=True,
        top_logprobs=3,
    )
    choice, usage = completion.choices[0], completion.usage
    assert choice.logprobs is not None and choice.logprobs.content is not None and usage is not None
    assert len(choice.logprobs.content) == usage.completion_tokens > 0
    assert all(len(token.top_logprobs) == 3 and token.logprob <= 0 for token in choice.logprobs.content)
    assert usage.prompt_tokens > 64


def test_streamed_image_chat_gives_the_same(client: OpenAI, picture: bytes) -> None:
    stream = client.chat.completions.create(
        model=MODEL,
        messages=user(image_part(picture), QUESTION),
        temperature=0,
        max_tokens=8,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == answer(client, image_part(picture), QUESTION)
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens > 0


def test_an_image_from_a_file(client: OpenAI, picture: bytes, picture_folder: Path) -> None:
    from_file = answer(client, url_part((picture_folder / "ball.png").as_uri()), QUESTION)
    assert from_file == answer(client, image_part(picture), QUESTION)


def test_the_model_has_its_name(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]


def test_the_routing_in_force(http: httpx.Client) -> None:
    routing = http.get("/v1/routing").raise_for_status().json()
    assert routing["source"] == "checkpoint"
    assert routing["modalities"] == ["text", "image"]
    assert routing["architecture"].startswith("MoELLaVA")
    assert len(routing["layers"]) > 0
    for layer in routing["layers"]:
        assert (layer["experts"], layer["top_k"]) == (4, 2)
        assert layer["gate"] and layer["kernel"]
        assert layer["policy"]["policy"] == "ltdr"
        assert layer["policy"]["tail_experts"] == 4
        assert layer["sources"]["tail_experts"] == "checkpoint"
