"""Recording one request's rows out of the steps of a runner, V1 or V2, without an engine."""

from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from prismoe.kernels.expert_load import empty_load
from prismoe.model_plugins.moe_layer.router import PolicyRouter
from prismoe.model_plugins.moe_layer.token_segments import TokenSegments
from prismoe.model_plugins.recording.inspection import InspectionRecorder
from prismoe.model_plugins.routing.policies.ltdr import LTDR

EXPERTS, HIDDEN, LAYERS = 4, 8, (0, 2)


def scheduled(counts: dict[str, int]) -> Any:
    """What the scheduler says of a step without new requests."""
    return SimpleNamespace(num_scheduled_tokens=counts, scheduled_new_reqs=[])


class V1Runner:
    """As vLLM's runner for CPU prepares a step: in `input_batch`."""

    requests: ClassVar[dict[str, Any]] = {}

    def _prepare_inputs(self, scheduler_output: Any, num_scheduled_tokens: Any) -> str:
        return "prepared"

    def step(self, computed: dict[str, int], counts: dict[str, int]) -> None:
        self.input_batch = SimpleNamespace(
            req_ids=[*computed], num_computed_tokens_cpu=torch.tensor([*computed.values(), 99])
        )
        assert self._prepare_inputs(scheduled(counts), None) == "prepared"


class V2Runner:
    """As vLLM's runner for CUDA prepares a step: `prepare_inputs` returns its batch."""

    req_states = SimpleNamespace(req_id_to_index={})

    def prepare_inputs(self, scheduler_output: Any, *others: Any) -> Any:
        return self.batch

    def step(self, computed: dict[str, int], counts: dict[str, int]) -> None:
        self.batch = SimpleNamespace(
            req_ids=[*computed], num_computed_tokens_np=torch.tensor([*computed.values()])
        )
        assert self.prepare_inputs(scheduled(counts), None) is self.batch


class Rig:
    """Routers of two layers behind a runner; `step` runs both and keeps the logits by request and token."""

    def __init__(self, runner: V1Runner | V2Runner, most_tokens: int = 100) -> None:
        self.runner = runner
        self.segments = TokenSegments(64)
        policy = LTDR(top_k=2, norm_topk_prob=True)
        self.routers = {
            layer: PolicyRouter(policy, EXPERTS, self.segments, empty_load(EXPERTS), nn.ParameterDict())
            for layer in LAYERS
        }
        self.logits: dict[tuple[str, int, int], list[float]] = {}
        routing: Any = SimpleNamespace(routers=self.routers)
        self.inspection = InspectionRecorder(runner, routing, "chatcmpl-mine", most_tokens)

    def step(self, computed: dict[str, int], counts: dict[str, int], segments: list[int]) -> None:
        self.runner.step(computed, counts)
        self.forward(segments)
        for request, position in computed.items():
            start = sum(counts[other] for other in [*computed][: [*computed].index(request)])
            for index in range(counts[request]):
                for layer in LAYERS:
                    self.logits[request, layer, position + index] = self.latest[layer][start + index].tolist()

    def forward(self, segments: list[int]) -> None:
        self.segments.clear()
        self.segments.segments[: len(segments)] = torch.tensor(segments)
        self.latest = {layer: torch.randn(len(segments), EXPERTS) for layer in LAYERS}
        for layer, router in self.routers.items():
            router._compute_routing(torch.zeros(len(segments), HIDDEN), self.latest[layer], None)


@pytest.mark.parametrize("kind", [V1Runner, V2Runner])
def test_the_rows_of_the_request_alone_in_the_order_of_its_positions(kind: type[V1Runner | V2Runner]) -> None:
    rig = Rig(kind())
    mine, other = "chatcmpl-mine-1a2b3c4d", "chatcmpl-other-1a2b3c4d"
    rig.step({other: 7, mine: 0}, {other: 2, mine: 5}, [-1, -1, -1, 0, 0, 0, -1])
    rig.step({other: 9}, {other: 1}, [-1])
    rig.step({mine: 5, other: 10}, {mine: 1, other: 1}, [-1, -1])
    rows = rig.inspection.rows(with_logits=True)
    assert rows["positions"] == [0, 1, 2, 3, 4, 5]
    assert rows["is_vision"] == [False, True, True, True, False, False]
    for layer in rows["layers"]:
        assert layer["router_logits"] == [rig.logits[mine, layer["layer"], i] for i in range(6)]
        assert [len(experts) for experts in layer["experts"]] == [4 if tail else 2 for tail in layer["tail"]]
        assert 0 < sum(layer["tail"]) < 3


def test_a_preempted_request_is_told_as_it_was_computed_last() -> None:
    rig = Rig(V1Runner())
    rig.step({"chatcmpl-mine-a": 0}, {"chatcmpl-mine-a": 4}, [-1, 0, 0, -1])
    rig.step({"chatcmpl-mine-a": 0}, {"chatcmpl-mine-a": 3}, [-1, 0, 0])
    rig.step({"chatcmpl-mine-a": 3}, {"chatcmpl-mine-a": 2}, [-1, -1])
    rows = rig.inspection.rows(with_logits=True)
    assert rows["positions"] == [0, 1, 2, 3, 4]
    assert rows["layers"][0]["router_logits"] == [rig.logits["chatcmpl-mine-a", 0, i] for i in range(5)]


def test_tokens_beyond_the_limit_and_dummy_steps_are_not_kept() -> None:
    rig = Rig(V1Runner(), most_tokens=5)
    rig.step({"chatcmpl-mine-a": 0}, {"chatcmpl-mine-a": 3}, [-1, -1, -1])
    rig.forward([-2, -2, -2])
    rig.step({"chatcmpl-mine-a": 3}, {"chatcmpl-mine-a": 4}, [-1] * 4)
    rig.step({"chatcmpl-mine-a": 7}, {"chatcmpl-mine-a": 1}, [-1])
    rows = rig.inspection.rows(with_logits=False)
    assert rows["positions"] == [0, 1, 2, 3, 4]
    assert rows["layers"][1]["router_logits"] is None


@pytest.mark.parametrize("kind", [V1Runner, V2Runner])
def test_nothing_stays_behind(kind: type[V1Runner | V2Runner]) -> None:
    rig = Rig(kind())
    assert vars(rig.runner)
    rig.inspection.end()
    assert not vars(rig.runner)
    assert all(router.observer is None for router in rig.routers.values())
    assert rig.inspection.rows(with_logits=False) == {
        "positions": [],
        "is_vision": [],
        "layers": [
            {"layer": layer, "experts": [], "weights": [], "tail": [], "router_logits": None}
            for layer in LAYERS
        ],
    }


def test_watching_counts_nothing() -> None:
    rig = Rig(V1Runner())
    rig.step({"chatcmpl-mine-a": 0}, {"chatcmpl-mine-a": 4}, [-1, 0, 0, -1])
    assert [router.load().tokens for router in rig.routers.values()] == [[2, 2]] * 2
