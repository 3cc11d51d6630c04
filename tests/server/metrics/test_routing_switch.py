"""`PUT /v1/routing/in_force`, without an engine: who may ask, for what, and what comes of it."""

from typing import Any

import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.testclient import TestClient

from prismoe.server.access.gate import Gate
from prismoe.server.access.keys import Key, KeyRing, Role
from prismoe.server.app.error_shape import ErrorShape, tell_validation_errors
from prismoe.server.metrics import routes
from prismoe.server.metrics.load_reader import logger
from prismoe.server.metrics.page import MetricsPage
from prismoe.server.metrics.routing_switch import RoutingSwitch
from tests.paths import REPOSITORY
from tests.server.fake_engine import SwitchedEngines, routing

KEYS = KeyRing([Key.of(f"the-{role}", role, role) for role in Role])
NATIVE, POLICY = {"routing": "native"}, {"routing": "policy"}


class Rig:
    """The routes behind the gate, of a model of two engines under a policy."""

    def __init__(self, switchable: bool = True, keys: KeyRing | None = KEYS) -> None:
        self.engines = SwitchedEngines()
        registry = CollectorRegistry()
        app = FastAPI()
        app.include_router(routes.router)
        tell_validation_errors(app)
        app.state.routing = routing(0, 2)
        app.state.routing.switchable = switchable
        self.switch = RoutingSwitch(self.engines, "policy", registry, "model")
        app.state.routing_switch = self.switch
        self.registry = registry
        MetricsPage(registry).add_to(app)
        gated: Any = app if keys is None else Gate(app, keys, open_metrics=False)
        self._http = TestClient(ErrorShape(gated))

    def put(self, body: Any, role: str = "admin", **content: Any) -> Any:
        headers = {"Authorization": f"Bearer {role}"} if role else {}
        sent = content or {"json": body}
        answer: Any = self._http.put("/v1/routing/in_force", headers=headers, **sent)
        return answer

    def in_force(self) -> str:
        told = self._http.get("/v1/routing", headers={"Authorization": "Bearer client"})
        return str(told.json()["in_force"])

    def metric(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, {"model_name": "model", **labels})

    def switches(self) -> tuple[float | None, float | None]:
        """To `native`, and to the policy."""
        name = "prismoe_routing_switches_total"
        return self.metric(name, to="native"), self.metric(name, to="policy")


def message(answer: Any) -> str:
    return str(answer.json()["error"]["message"])


def test_all_engines_are_switched_there_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    rig, said = Rig(), list[str]()
    monkeypatch.setattr(logger, "info", lambda text, *values: said.append(text % values))
    assert (rig.in_force(), rig.metric("prismoe_policy_in_force"), rig.switches()) == ("policy", 1, (0, 0))
    answer = rig.put(NATIVE)
    assert (answer.status_code, answer.json()) == (200, NATIVE)
    assert said == ["The routing is switched to native by the key of the-admin."]
    assert rig.engines.routed_by == ["native", "native"]
    assert (rig.in_force(), rig.metric("prismoe_policy_in_force"), rig.switches()) == ("native", 0, (1, 0))
    assert rig.put(POLICY).json() == POLICY
    assert rig.engines.routed_by == ["policy", "policy"]
    assert (rig.in_force(), rig.metric("prismoe_policy_in_force"), rig.switches()) == ("policy", 1, (1, 1))


def test_asking_for_what_is_in_force_changes_nothing() -> None:
    rig = Rig()
    assert rig.put(POLICY).status_code == 200
    assert rig.switches() == (0, 0)
    assert rig.switch.salted("mine") == "mine" and rig.switch.salted(None) is None


def test_one_engine_that_lags_behind_is_a_change() -> None:
    """As after a call that failed half way."""
    rig = Rig()
    rig.engines.routed_by = ["policy", "native"]
    assert rig.put(POLICY).status_code == 200
    assert rig.engines.routed_by == ["policy", "policy"] and rig.switches() == (0, 1)


def test_each_change_has_a_salt_of_its_own() -> None:
    """So the prefix cache begins anew, and clients stay as far apart in it as they were."""
    rig = Rig()
    seen = [rig.switch.salted(None)]
    for body in (NATIVE, POLICY, NATIVE):
        rig.put(body)
        seen.append(rig.switch.salted(None))
        assert len({rig.switch.salted(own) for own in (None, "mine", "yours")}) == 3
    assert len(set(seen)) == 4 and all(salt is None or len(salt) == 32 for salt in seen)


@pytest.mark.parametrize(("role", "status"), [("", 401), ("unknown", 401), ("client", 403), ("metrics", 403)])
def test_other_keys_are_refused(role: str, status: int) -> None:
    rig = Rig()
    for body in (NATIVE, {"routing": "nonsense"}):
        assert rig.put(body, role).status_code == status
    assert rig.engines.routed_by == ["policy", "policy"]


@pytest.mark.parametrize("role", ["", "admin"])
def test_without_keys_nobody_may(role: str) -> None:
    rig = Rig(keys=None)
    answer = rig.put(NATIVE, role)
    assert answer.status_code == 403 and "--api-keys-file" in message(answer)
    assert rig.engines.routed_by == ["policy", "policy"]


@pytest.mark.parametrize(
    "body", [{}, [], None, "native", *({"routing": value} for value in ("ltdr", None, 1, ["native"]))]
)
def test_other_bodies_are_refused_with_a_sentence(body: Any) -> None:
    rig = Rig()
    answer = rig.put(body)
    assert answer.status_code == 400 and message(answer).endswith(".")
    assert [rig.put(NATIVE | {"layers": {}}).status_code, rig.put(None, content=b"{").status_code] == [
        400
    ] * 2
    assert rig.engines.routed_by == ["policy", "policy"]


@pytest.mark.parametrize("body", [NATIVE, POLICY])
def test_where_there_is_nothing_to_switch(body: dict[str, str]) -> None:
    rig = Rig(switchable=False)
    answer = rig.put(body)
    assert (answer.status_code, message(answer)) == (409, routes.NOTHING_TO_SWITCH)
    assert rig.engines.routed_by == ["policy", "policy"]


def test_the_metrics_are_in_the_documentation() -> None:
    page = (REPOSITORY / "docs" / "metrics.md").read_text()
    names = {sample.name for family in Rig().registry.collect() for sample in family.samples}
    told = {name for name in names if not name.endswith("_created")}
    assert told == {"prismoe_routing_switches_total", "prismoe_policy_in_force"}
    assert all(f"`{name}`" in page for name in told)
