"""The shape of errors, without an engine."""

import asyncio
from typing import Annotated, Any, Literal

import httpx
import pytest
from fastapi import Body, FastAPI, HTTPException
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel, Field, field_validator

from prismoe.server.app.error_shape import ErrorShape, tell_validation_errors


class Request(BaseModel):
    temperature: float | None = Field(None, ge=0, le=2)
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    tier: Literal["auto", "flex"] = "auto"
    words: list[str] = Field([], max_length=2)
    user: str = "me"

    @field_validator("user")
    @classmethod
    def _check(cls, user: str) -> str:
        if user == "nobody":
            raise ValueError("The user has to be somebody.")
        return user


app = FastAPI()
tell_validation_errors(app)


@app.post("/v1/chat/completions")
@app.post("/v1/messages")
@app.post("/v1/messages/count_tokens")
async def answer(request: Request) -> dict[str, bool]:
    return {"ok": True}


@app.post("/v1/chat/completions/batch")
async def answer_each(request: Annotated[dict[str, Any], Body()]) -> None:
    Request.model_validate(request)


@app.post("/raise/{status}")
async def raise_error(status: int) -> None:
    raise HTTPException(status, "A sentence.", {"X-Own": "1"})


@app.post("/v1/messages/{status}")
async def vllms(status: int) -> JSONResponse:
    return JSONResponse({"type": "error", "error": {"type": "BadRequestError", "message": "A."}}, status)


@app.post("/v1/chat/raise")
async def raise_message(message: Annotated[str, Body(embed=True)]) -> None:
    raise HTTPException(400, message)


@app.get("/readyz")
async def ready() -> JSONResponse:
    return JSONResponse({"status": "not ready"}, 503)


@app.get("/plain")
async def plain() -> PlainTextResponse:
    return PlainTextResponse("no", 500)


def ask(method: str, path: str, body: Any = Body) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(ErrorShape(app))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await client.request(method, path, json=None if body is Body else body)

    return asyncio.run(send())


def test_an_unknown_route_and_method() -> None:
    missing = ask("GET", "/nothing")
    assert (missing.status_code, missing.json()) == (
        404,
        {
            "error": {
                "message": "This server has no such route. GET /openapi.json lists its routes.",
                "type": "Not Found",
                "param": None,
                "code": 404,
            }
        },
    )
    wrong = ask("GET", "/v1/messages")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    message = "This route does not take this method: GET /openapi.json lists them."
    assert wrong.json() == {"type": "error", "error": {"type": "invalid_request_error", "message": message}}


def test_headers_of_an_error_are_kept() -> None:
    raised = ask("POST", "/raise/429")
    assert raised.status_code == 429 and raised.headers["x-own"] == "1"
    assert raised.json()["error"]["message"] == "A sentence."


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (408, "invalid_request_error"),
        (413, "request_too_large"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (503, "overloaded_error"),
    ],
)
def test_errors_have_anthropics_names(status: int, kind: str) -> None:
    reported = ask("POST", f"/v1/messages/{status}")
    assert reported.status_code == status
    assert reported.json() == {"type": "error", "error": {"type": kind, "message": "A."}}


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ("n has to be 1. (parameter=n, value=2)", "n has to be 1."),
        ("Give a name (any).", "Give a name (any)."),
        ("No point", "No point."),
    ],
)
def test_a_message_becomes_a_sentence(message: str, sentence: str) -> None:
    assert ask("POST", "/v1/chat/raise", {"message": message}).json()["error"]["message"] == sentence


def test_errors_that_a_route_raises() -> None:
    refused = ask("POST", "/v1/chat/completions/batch", {"stream": 7})
    assert refused.status_code == 400
    assert refused.json()["error"]["message"] == "stream must be true or false."


def test_other_exceptions_are_not_changed() -> None:
    assert ask("GET", "/readyz").json() == {"status": "not ready"}
    assert ask("GET", "/plain").text == "no"
    assert ask("POST", "/v1/messages", {}).json() == {"ok": True}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"temperature": "hot"}, "temperature must be a number."),
        ({"temperature": 3}, "temperature must be at most 2.0."),
        ({"temperature": -1}, "temperature must be at least 0.0."),
        ({"seed": 1.5}, "seed must be a whole number."),
        ({"seed": {}}, "seed must be a whole number."),
        ({"stop": 3}, "stop has a value of a type that it does not take."),
        ({"stop": ["a", 3]}, "stop has a value of a type that it does not take."),
        ({"stream": "perhaps"}, "stream must be true or false."),
        ({"tier": "x"}, "tier must be 'auto' or 'flex'."),
        ({"words": ["a", 3]}, "words[1] must be a text."),
        ({"words": ["a"] * 3}, "words is longer than 2."),
        ({"user": "nobody"}, "The user has to be somebody."),
        ({"seed": [0] * 300, "words": [0] * 300}, "seed must be a whole number."),
        ([], "The request must be an object."),
    ],
)
def test_validation_errors_of_vllms_models_become_one_sentence(body: Any, message: str) -> None:
    reported = ask("POST", "/v1/chat/completions", body)
    assert (reported.status_code, reported.json()["error"]["message"]) == (400, message)
    anthropic = ask("POST", "/v1/messages", body).json()
    assert anthropic == {"type": "error", "error": {"type": "invalid_request_error", "message": message}}
