"""The description of prismoe's own routes in /openapi.json. No engine runs."""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from pydantic import BaseModel

from prismoe.server.app import model_routes
from prismoe.server.inspector import routes as inspection_routes
from prismoe.server.metrics import routes


@pytest.fixture(scope="module")
def reported() -> dict[str, Any]:
    app = FastAPI()
    for router in (routes.router, model_routes.router, inspection_routes.router):
        app.include_router(router)
    return app.openapi()


def own_models(parent: type[BaseModel] = BaseModel) -> Iterator[type[BaseModel]]:
    """The models without those of `server.requests`, which share names with the schemas of vLLM's routes."""
    for model in parent.__subclasses__():
        if model.__module__.startswith("prismoe.") and ".server.requests." not in model.__module__:
            yield model
        yield from own_models(model)


def test_every_field_of_our_requests_and_answers_is_described(reported: dict[str, Any]) -> None:
    schemas = reported["components"]["schemas"]
    own = {model.__name__: model for model in own_models() if model.__name__ in schemas}
    assert own.keys() >= {
        *("ServedRouting", "ServedLayer", "InForce", "NewThresholds", "ExpertLoad"),
        *("Inspectable", "InspectionRequest", "Inspected", "Inspection", "InspectedToken", "PatchGrid"),
    }
    bare = [
        f"{name}.{field}"
        for name, model in own.items()
        for field, schema in schemas[name]["properties"].items()
        if field in model.__annotations__ and not schema.get("description")
    ]
    assert bare == []


def test_every_own_route_is_described(reported: dict[str, Any]) -> None:
    operations = [operation for path in reported["paths"].values() for operation in path.values()]
    assert len(operations) >= 7 and all(operation.get("description") for operation in operations)
