"""Python clients with a server on the bundled model: chat, streams, structured output, models, errors.

Runs with pytest in an environment that has the clients but not prismoe (`make clients`). PRISMOE_URL is the
server's URL, PRISMOE_PICTURE the path of a picture of a maple leaf.
"""

import asyncio
import base64
import os
from copy import deepcopy
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import anthropic
import instructor
import litellm
import openai
import pytest
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field

URL = os.environ["PRISMOE_URL"]
DATA = base64.b64encode(Path(os.environ["PRISMOE_PICTURE"]).read_bytes()).decode()
MODEL = "prismoji"
ANSWER = "maple leaf"

TEXT = {"type": "text", "text": "What is this?"}
IMAGE = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{DATA}"}}
QUESTION: list[Any] = [{"role": "user", "content": [IMAGE, TEXT]}]
INPUT: list[Any] = [
    {
        "role": "user",
        "content": [
            {"type": "input_image", "image_url": f"data:image/png;base64,{DATA}", "detail": "auto"},
            {"type": "input_text", "text": "What is this?"},
        ],
    }
]
BLOCKS: list[Any] = [
    {
        "role": "user",
        "content": [
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": DATA}},
            {"type": "text", "text": "What is this?"},
        ],
    }
]


class Kind(StrEnum):
    PLANT = "plant"
    ANIMAL = "animal"
    THING = "thing"


class Seen(BaseModel):
    """The content of a picture."""

    kind: Kind
    colours: Annotated[int, Field(ge=1, le=9)]
    sure: bool


@pytest.fixture
def client() -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0)


@pytest.fixture
def anthropic_client() -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=URL, api_key="none", max_retries=0)


def check(seen: Seen | None) -> None:
    assert seen is not None and seen.kind in Kind and 1 <= seen.colours <= 9


def test_openai(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_tokens=9)
    assert answer.choices[0].message.content == ANSWER
    assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.model_dump()["multimodal_tokens"] == {"image": 64}


def test_openai_sends_an_answer_back(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_tokens=9)
    more = [*QUESTION, answer.choices[0].message, {"role": "user", "content": "What colour is it?"}]
    assert client.chat.completions.create(model=MODEL, messages=more, max_tokens=4).choices[0].message.content


def test_openai_async() -> None:
    async def ask() -> str | None:
        async with openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0) as client:
            answer = await client.chat.completions.create(
                model=MODEL, messages=QUESTION, temperature=0, max_tokens=9
            )
            return answer.choices[0].message.content

    assert asyncio.run(ask()) == ANSWER


def test_openai_stream(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        temperature=0,
        max_tokens=9,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == ANSWER
    assert chunks[-1].usage is not None


def test_openai_parse(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model=MODEL, messages=QUESTION, response_format=Seen, max_tokens=60, temperature=0
    )
    check(answer.choices[0].message.parsed)
    more = [*QUESTION, answer.choices[0].message, {"role": "user", "content": "What colour is it?"}]
    assert client.chat.completions.create(model=MODEL, messages=more, max_tokens=4).choices[0].message.content


def test_openai_json_object(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=QUESTION, response_format={"type": "json_object"}, max_tokens=20
    )
    content = answer.choices[0].message.content
    assert content is not None and content.startswith("{") and not content.startswith("{ ")


def test_openai_responses(client: openai.OpenAI) -> None:
    answer = client.responses.create(model=MODEL, input=INPUT, temperature=0, max_output_tokens=9)
    assert answer.output_text == ANSWER
    parsed = client.responses.parse(model=MODEL, input=INPUT, text_format=Seen, max_output_tokens=60)
    check(parsed.output_parsed)


def test_openai_responses_stream(client: openai.OpenAI) -> None:
    stream = client.responses.create(
        model=MODEL, input=INPUT, temperature=0, max_output_tokens=9, stream=True
    )
    assert "".join(event.delta for event in stream if event.type == "response.output_text.delta") == ANSWER


def test_openai_models(client: openai.OpenAI) -> None:
    (listed,) = client.models.list().data
    assert client.models.retrieve(listed.id).id == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        ({"model": "nobody", "messages": QUESTION}, openai.NotFoundError),
        ({"model": MODEL, "messages": []}, openai.BadRequestError),
        ({"model": MODEL, "messages": QUESTION, "temperature": -1}, openai.BadRequestError),
        ({"model": MODEL, "messages": [{"role": "wizard", "content": "a"}]}, openai.BadRequestError),
    ],
)
def test_openai_errors(client: openai.OpenAI, request_: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error) as raised:
        client.chat.completions.create(**request_)
    assert isinstance(raised.value, openai.APIStatusError)
    body: Any = raised.value.body
    assert body["message"].endswith(".") and "\n" not in body["message"]


def test_instructor(client: openai.OpenAI) -> None:
    """Its mode JSON writes the schema into the prompt, which is too long for the bundled model."""
    seen = instructor.from_openai(client, mode=instructor.Mode.JSON_SCHEMA).chat.completions.create(
        model=MODEL, messages=deepcopy(QUESTION), response_model=Seen, max_tokens=60, temperature=0
    )
    check(seen)


def langchain() -> ChatOpenAI:
    options: Any = {"base_url": f"{URL}/v1", "api_key": "none", "max_retries": 0, "temperature": 0}
    return ChatOpenAI(model=MODEL, max_completion_tokens=60, **options)


def test_langchain() -> None:
    assert langchain().invoke(QUESTION).content == ANSWER
    assert "".join(str(chunk.content) for chunk in langchain().stream(QUESTION)) == ANSWER


def test_langchain_structured_output() -> None:
    seen = langchain().with_structured_output(Seen, method="json_schema").invoke(QUESTION)
    assert isinstance(seen, Seen)
    check(seen)


def test_litellm() -> None:
    where: Any = {"model": f"openai/{MODEL}", "api_base": f"{URL}/v1", "api_key": "none", "num_retries": 0}
    answer: Any = litellm.completion(messages=QUESTION, temperature=0, max_tokens=9, **where)
    assert answer.choices[0].message.content == ANSWER
    stream: Any = litellm.completion(messages=QUESTION, temperature=0, max_tokens=9, stream=True, **where)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == ANSWER
    seen: Any = litellm.completion(messages=QUESTION, max_tokens=60, response_format=Seen, **where)
    check(Seen.model_validate_json(seen.choices[0].message.content))
    more = [*QUESTION, answer.choices[0].message.model_dump(), {"role": "user", "content": "What colour?"}]
    assert litellm.completion(messages=more, max_tokens=4, **where)
    with pytest.raises(litellm.exceptions.BadRequestError):
        litellm.completion(messages=[{"role": "wizard", "content": "a"}], **where)


def test_anthropic(anthropic_client: anthropic.Anthropic) -> None:
    answer: Any = anthropic_client.messages.create(
        model=MODEL, messages=BLOCKS, max_tokens=9, system="Be brief.", extra_body={"temperature": 0}
    )
    assert answer.content[0].text.strip() and not answer.content[0].text.startswith(" ")
    counted = anthropic_client.messages.count_tokens(model=MODEL, messages=BLOCKS, system="Be brief.")
    assert counted.input_tokens == answer.usage.input_tokens


def test_anthropic_stream(anthropic_client: anthropic.Anthropic) -> None:
    with anthropic_client.messages.stream(
        model=MODEL, messages=BLOCKS, max_tokens=9, extra_body={"temperature": 0}
    ) as stream:
        assert "".join(stream.text_stream) == ANSWER


def test_anthropic_errors(anthropic_client: anthropic.Anthropic) -> None:
    bad: Any = [{"role": "user", "content": [{"type": "image"}]}]
    with pytest.raises(anthropic.BadRequestError) as raised:
        anthropic_client.messages.create(model=MODEL, messages=bad, max_tokens=9)
    body: Any = raised.value.body
    assert body["type"] == "error" and body["error"]["type"] == "invalid_request_error"
    assert body["error"]["message"].endswith(".")
    with pytest.raises(anthropic.NotFoundError) as missing:
        anthropic_client.messages.create(model="nobody", messages=BLOCKS, max_tokens=9)
    assert missing.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]
