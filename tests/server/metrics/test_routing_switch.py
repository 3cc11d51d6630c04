"""Changes of the routing at run time, without an engine: permissions, requests and effects."""

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


POLICIES: list[dict[str, Any]] = [
    {"policy": "dual_threshold", "top_k": 2, "norm_topk_prob": True, "vision_threshold": 0.3},
    {"policy": "ltdr", "top_k": 2, "norm_topk_prob": True, "threshold": 0.02},
    {"policy": "entropy", "norm_topk_prob": True, "low": 0.2, "high": 0.8},
]


class Rig:
    """The routes behind the gate, for a model with two engines under a policy."""

    def __init__(self, switchable: bool = True, keys: KeyRing | None = KEYS) -> None:
        self.engines = SwitchedEngines(*POLICIES)
        registry = CollectorRegistry()
        app = FastAPI()
        app.include_router(routes.router)
        tell_validation_errors(app)
        app.state.routing = routing(0, 1, 2, policies=POLICIES)
        app.state.routing.switchable = switchable
        self.switch = RoutingSwitch(self.engines, app.state.routing, registry, "model")
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

    def patch(self, body: Any, role: str = "admin") -> Any:
        """Change thresholds."""
        headers = {"Authorization": f"Bearer {role}"} if role else {}
        answer: Any = self._http.patch("/v1/routing/thresholds", headers=headers, json=body)
        return answer

    def policies(self) -> list[dict[str, Any]]:
        """The policies in the answer of `GET /v1/routing`."""
        reported = self._http.get("/v1/routing", headers={"Authorization": "Bearer client"})
        return [layer["policy"] for layer in reported.json()["layers"]]

    def in_force(self) -> str:
        reported = self._http.get("/v1/routing", headers={"Authorization": "Bearer client"})
        return str(reported.json()["in_force"])

    def metric(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, {"model_name": "model", **labels})

    def switches(self) -> tuple[float | None, float | None]:
        """Switches to `native`, and to the policy."""
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
    assert said == ["The key the-admin switched the routing to native."]
    assert rig.engines.routed_by == ["native", "native"]
    assert (rig.in_force(), rig.metric("prismoe_policy_in_force"), rig.switches()) == ("native", 0, (1, 0))
    assert rig.put(POLICY).json() == POLICY
    assert rig.engines.routed_by == ["policy", "policy"]
    assert (rig.in_force(), rig.metric("prismoe_policy_in_force"), rig.switches()) == ("policy", 1, (1, 1))


def test_a_change_to_the_routing_in_force_changes_nothing() -> None:
    rig = Rig()
    assert rig.put(POLICY).status_code == 200
    assert rig.switches() == (0, 0)
    assert rig.switch.salted("mine") == "mine" and rig.switch.salted(None) is None


def test_a_change_repairs_an_engine_that_lags_behind() -> None:
    """One engine is different after a call that failed half way."""
    rig = Rig()
    rig.engines.routed_by = ["policy", "native"]
    assert rig.put(POLICY).status_code == 200
    assert rig.engines.routed_by == ["policy", "policy"] and rig.switches() == (0, 1)


def test_each_change_has_its_own_salt() -> None:
    """So the prefix cache starts empty, and clients stay as separate in it as before."""
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
def test_without_keys_nobody_may_switch(role: str) -> None:
    rig = Rig(keys=None)
    answer = rig.put(NATIVE, role)
    assert answer.status_code == 403 and "--api-keys-file" in message(answer)
    assert rig.engines.routed_by == ["policy", "policy"]


@pytest.mark.parametrize(
    "body", [{}, [], None, "native", *({"routing": value} for value in ("ltdr", None, 1, ["native"]))]
)
def test_other_bodies_are_refused_with_a_message(body: Any) -> None:
    rig = Rig()
    answer = rig.put(body)
    assert answer.status_code == 400 and message(answer).endswith(".")
    assert [rig.put(NATIVE | {"layers": {}}).status_code, rig.put(None, content=b"{").status_code] == [
        400
    ] * 2
    assert rig.engines.routed_by == ["policy", "policy"]


@pytest.mark.parametrize("body", [NATIVE, POLICY])
def test_models_without_a_switch(body: dict[str, str]) -> None:
    rig = Rig(switchable=False)
    answer = rig.put(body)
    assert (answer.status_code, message(answer)) == (409, routes.NOT_SWITCHABLE)
    assert rig.engines.routed_by == ["policy", "policy"]


def test_thresholds_are_changed_in_all_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    rig, said = Rig(), list[str]()
    monkeypatch.setattr(logger, "info", lambda text, *values: said.append(text % values))
    skip, heads, entropy = POLICIES
    answer = rig.patch({"vision_threshold": 0.4, "low": 0, "layers": {"1": {"threshold": 0.5}}})
    assert answer.status_code == 200
    expected = [skip | {"vision_threshold": 0.4}, heads | {"threshold": 0.5}, entropy | {"low": 0}]
    assert rig.policies() == [layer["policy"] for layer in answer.json()["layers"]] == expected
    assert rig.engines.policies == [dict(enumerate(expected))] * 2
    assert said == [
        "The key the-admin changed thresholds: "
        "vision_threshold is 0.4, low is 0, threshold of layer 1 is 0.5."
    ]
    assert rig.metric("prismoe_threshold_changes_total") == 1
    salt = rig.switch.salted(None)
    assert salt and rig.switches() == (0, 0)
    assert rig.patch({"vision_threshold": 0.4}).status_code == 200  # unchanged
    assert (rig.switch.salted(None), rig.metric("prismoe_threshold_changes_total")) == (salt, 1)
    assert rig.patch({"vision_threshold": 0.3}).status_code == 200
    assert rig.switch.salted(None) not in (salt, None)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({}, "Name a threshold to change: there are high, low, text_threshold, threshold, vision_threshold."),
        ({"top_k": 1}, "top_k is not a threshold in force: these are high, "),
        (
            {"layers": {"0": {"low": 0.1}}},
            "low is not a threshold of layer 0: its policy dual_threshold has ",
        ),
        ({"layers": {"7": {"low": 0.1}}}, "layers names 7, but the MoE layers under a policy are 0, 1, 2."),
        ({"threshold": -1}, "The policy ltdr of layer 1 refuses this: threshold: Input should be "),
        ({"low": 0.9}, "low is 0.9 and high is 0.8: give a low below high"),
        ({"vision_threshold": 0.5, "high": 2}, "high: Input should be less than or equal to 1."),
        ({"threshold": "0.1"}, ""),
        ({"threshold": None}, ""),
        ({"threshold": True}, ""),
        ({"layers": {"1": 0.1}}, ""),
        ({"layers": [0.1]}, ""),
        ([], ""),
        (None, ""),
    ],
)
def test_thresholds_that_no_policy_has_are_refused_with_a_message(body: Any, sentence: str) -> None:
    rig = Rig()
    answer = rig.patch(body)
    assert answer.status_code == 400 and sentence in message(answer) and message(answer).endswith(".")
    assert rig.engines.policies == [dict(enumerate(POLICIES))] * 2
    assert rig.switch.salted(None) is None


def test_a_threshold_is_a_finite_number() -> None:
    for value in (b"NaN", b"Infinity"):
        rig = Rig()
        headers = {"Authorization": "Bearer admin", "Content-Type": "application/json"}
        url = "/v1/routing/thresholds"
        answer = rig._http.patch(url, headers=headers, content=b'{"threshold": %s}' % value)
        assert answer.status_code == 400
        assert rig.engines.policies == [dict(enumerate(POLICIES))] * 2


@pytest.mark.parametrize(("role", "status"), [("", 401), ("client", 403), ("metrics", 403)])
def test_other_keys_cannot_change_thresholds(role: str, status: int) -> None:
    rig = Rig()
    assert rig.patch({"threshold": 0.5}, role).status_code == status
    assert Rig(keys=None).patch({"threshold": 0.5}).status_code == 403
    refused = Rig(switchable=False).patch({"threshold": 0.5})
    assert (refused.status_code, message(refused)) == (409, routes.NOT_SWITCHABLE)
    assert rig.engines.policies == [dict(enumerate(POLICIES))] * 2


def test_the_metrics_are_in_the_documentation() -> None:
    page = (REPOSITORY / "docs" / "metrics.md").read_text()
    names = {sample.name for family in Rig().registry.collect() for sample in family.samples}
    reported = {name for name in names if not name.endswith("_created")}
    assert reported == {
        "prismoe_routing_switches_total",
        "prismoe_policy_in_force",
        "prismoe_threshold_changes_total",
    }
    assert all(f"`{name}`" in page for name in reported)
