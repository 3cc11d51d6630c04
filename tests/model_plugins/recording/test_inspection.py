"""Records one request's rows from the steps of a V1 or V2 runner, without an engine."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from prismoe.model_plugins.moe_layer.router import PolicyRouter, layer_shape
from prismoe.model_plugins.moe_layer.step import RoutingStep
from prismoe.model_plugins.recording.inspection import InspectionRecorder
from prismoe.model_plugins.routing.policies.ltdr import LTDR
from prismoe.model_plugins.worker.calls import RoutingCalls

EXPERTS, HIDDEN, LAYERS = 4, 8, (0, 2)


def scheduled(counts: dict[str, int], new: Sequence[Any] = ()) -> Any:
    """The scheduler's output for a step."""
    return SimpleNamespace(num_scheduled_tokens=counts, scheduled_new_reqs=new)


class V1Runner:
    """Prepares a step like vLLM's runner for CPU, in `input_batch`."""

    requests: ClassVar[dict[str, Any]] = {}

    def _prepare_inputs(self, scheduler_output: Any, num_scheduled_tokens: Any) -> str:
        return "prepared"

    def step(self, computed: dict[str, int], counts: dict[str, int], new: Sequence[Any] = ()) -> None:
        self.input_batch = SimpleNamespace(
            req_ids=[*computed], num_computed_tokens_cpu=torch.tensor([*computed.values(), 99])
        )
        assert self._prepare_inputs(scheduled(counts, new), None) == "prepared"


class V2Runner:
    """Prepares a step like vLLM's runner for CUDA: `prepare_inputs` returns its batch."""

    req_states = SimpleNamespace(req_id_to_index={})

    def prepare_inputs(self, scheduler_output: Any, *others: Any) -> Any:
        return self.batch

    def step(self, computed: dict[str, int], counts: dict[str, int], new: Sequence[Any] = ()) -> None:
        self.batch = SimpleNamespace(
            req_ids=[*computed], num_computed_tokens_np=torch.tensor([*computed.values()])
        )
        assert self.prepare_inputs(scheduled(counts, new), None) is self.batch


class Rig:
    """Routers of two layers in a runner. `step` runs both, and keeps the logits by request and token."""

    def __init__(self, runner: V1Runner | V2Runner, most_tokens: int = 100, with_logits: bool = True) -> None:
        self.runner = runner
        policy = LTDR(top_k=2, norm_topk_prob=True)
        shapes = [layer_shape(policy, EXPERTS) for _ in LAYERS]
        self.routed = RoutingStep(("text", "image"), shapes, 64)
        self.routers = {
            layer: PolicyRouter(policy, EXPERTS, self.routed, place, nn.ParameterDict())
            for place, layer in enumerate(LAYERS)
        }
        self.logits: dict[tuple[str, int, int], list[float]] = {}
        self.routing = SimpleNamespace(
            routers=self.routers, layers=dict.fromkeys(LAYERS), step=self.routed, step_watchers=[]
        )
        routing: Any = self.routing
        self.inspection = InspectionRecorder(runner, routing, "chatcmpl-mine", most_tokens, with_logits)

    def step(
        self,
        computed: dict[str, int],
        counts: dict[str, int],
        segments: list[int],
        new: Sequence[Any] = (),
    ) -> None:
        self.runner.step(computed, counts, new)
        self.forward(segments)
        for watch in self.routing.step_watchers:
            watch(self.routed)
        for request, position in computed.items():
            start = sum(counts[other] for other in [*computed][: [*computed].index(request)])
            for index in range(counts[request]):
                for layer in LAYERS:
                    self.logits[request, layer, position + index] = self.latest[layer][start + index].tolist()

    def forward(self, segments: list[int]) -> None:
        """Run the routers, as dummy steps do, too."""
        self.routed.tokens.clear()
        segment_T = torch.tensor(segments)
        self.routed.tokens.segments[: len(segments)] = segment_T
        self.routed.tokens.modalities[: len(segments)] = segment_T.clamp(max=0) + 1
        self.latest = {layer: torch.randn(len(segments), EXPERTS) for layer in LAYERS}
        for layer, router in self.routers.items():
            router._compute_routing(torch.zeros(len(segments), HIDDEN), self.latest[layer], None)


@pytest.mark.parametrize("kind", [V1Runner, V2Runner])
def test_only_the_requests_rows_in_the_order_of_its_positions(kind: type[V1Runner | V2Runner]) -> None:
    rig = Rig(kind())
    mine, other = "chatcmpl-mine-1a2b3c4d", "chatcmpl-other-1a2b3c4d"
    rig.step({other: 7, mine: 0}, {other: 2, mine: 5}, [-1, -1, -1, 0, 0, 0, -1])
    rig.step({other: 9}, {other: 1}, [-1])
    rig.step({mine: 5, other: 10}, {mine: 1, other: 1}, [-1, -1])
    rows = rig.inspection.rows()
    assert rows["positions"] == [0, 1, 2, 3, 4, 5]
    assert rows["modalities"] == ["text", "image", "image", "image", "text", "text"]
    for layer in rows["layers"]:
        assert layer["router_logits"] == [rig.logits[mine, layer["layer"], i] for i in range(6)]
        assert [len(experts) for experts in layer["experts"]] == [4 if tail else 2 for tail in layer["tail"]]
        assert 0 < sum(layer["tail"]) < 3


def test_a_preempted_request_has_its_last_computed_rows() -> None:
    rig = Rig(V1Runner())
    rig.step({"chatcmpl-mine-a": 0}, {"chatcmpl-mine-a": 4}, [-1, 0, 0, -1])
    rig.step({"chatcmpl-mine-a": 0}, {"chatcmpl-mine-a": 3}, [-1, 0, 0])
    rig.step({"chatcmpl-mine-a": 3}, {"chatcmpl-mine-a": 2}, [-1, -1])
    rows = rig.inspection.rows()
    assert rows["positions"] == [0, 1, 2, 3, 4]
    assert rows["layers"][0]["router_logits"] == [rig.logits["chatcmpl-mine-a", 0, i] for i in range(5)]


def test_tokens_beyond_the_limit_and_dummy_steps_are_not_kept() -> None:
    rig = Rig(V1Runner(), most_tokens=5, with_logits=False)
    rig.step({"chatcmpl-mine-a": 0}, {"chatcmpl-mine-a": 3}, [-1, -1, -1])
    rig.forward([-2, -2, -2])
    rig.step({"chatcmpl-mine-a": 3}, {"chatcmpl-mine-a": 4}, [-1] * 4)
    rig.step({"chatcmpl-mine-a": 7}, {"chatcmpl-mine-a": 1}, [-1])
    rows = rig.inspection.rows()
    assert rows["positions"] == [0, 1, 2, 3, 4]
    assert rows["layers"][1]["router_logits"] is None


@pytest.mark.parametrize("kind", [V1Runner, V2Runner])
def test_an_ended_inspection_leaves_nothing(kind: type[V1Runner | V2Runner]) -> None:
    rig = Rig(kind())
    assert vars(rig.runner)
    rig.inspection.end()
    assert not vars(rig.runner)
    assert all(router.observer is None for router in rig.routers.values())
    assert rig.routing.step_watchers == []
    assert rig.inspection.rows() == {
        "positions": [],
        "modalities": [],
        "media": [],
        "layers": [
            {"layer": layer, "experts": [], "weights": [], "tail": [], "router_logits": None}
            for layer in LAYERS
        ],
    }


def test_a_worker_records_only_the_latest_request() -> None:
    rig = Rig(V1Runner())
    rig.inspection.end()
    worker: Any = RoutingCalls()
    worker.model_runner, worker.routing, worker.rank = rig.runner, rig.routing, 0
    worker.prismoe_start_inspection("chatcmpl-first", 100, False)
    worker.prismoe_start_inspection("chatcmpl-mine", 100, False)
    assert len(rig.routing.step_watchers) == 1
    worker.prismoe_end_inspection("chatcmpl-first")
    assert worker.prismoe_inspected_rows("chatcmpl-first") is None
    assert worker.prismoe_inspected_rows("chatcmpl-mine")["positions"] == []
    worker.prismoe_end_inspection("chatcmpl-mine")
    assert rig.routing.step_watchers == [] and not vars(rig.runner)


def test_a_kernel_that_routes_by_itself_has_no_weights_and_logits() -> None:
    rig = Rig(V1Runner())
    rig.routers[0].observer = None
    rig.runner.step({"chatcmpl-mine-a": 0}, {"chatcmpl-mine-a": 2})
    rig.forward([-1, -1])
    rig.routed.write(0, torch.tensor([[2, 1], [0, 3]]), None)
    for watch in rig.routing.step_watchers:
        watch(rig.routed)
    alone, other = rig.inspection.rows()["layers"]
    assert alone["experts"] == [[2, 1], [0, 3]]
    assert alone["weights"] is None and alone["router_logits"] is None
    assert len(other["weights"]) == len(other["router_logits"]) == 2


@pytest.mark.parametrize(
    ("grid", "is_embed", "reported"),
    [
        ([1, 6, 4], None, [1, 3, 2]),
        ([2, 2, 6], [True, True, False, True, True, True, True], [2, 1, 3]),
        (None, None, None),
    ],
    ids=["an image", "a video with a separator", "no grid"],
)
def test_the_requests_media_are_recorded(
    grid: list[int] | None, is_embed: list[bool] | None, reported: list[int] | None
) -> None:
    rig = Rig(V1Runner())
    length = 6 if is_embed is None else 7
    data = None if grid is None else {"video_grid_thw": SimpleNamespace(data=torch.tensor(grid))}
    position = SimpleNamespace(
        offset=1, length=length, is_embed=None if is_embed is None else torch.tensor(is_embed)
    )
    feature = SimpleNamespace(modality="video", mm_position=position, data=data)
    new = [SimpleNamespace(req_id="chatcmpl-mine-a", mm_features=[feature])]
    rig.step({"chatcmpl-mine-a": 0}, {"chatcmpl-mine-a": 4}, [-1, 0, 0, 0], new)
    assert rig.inspection.rows()["media"] == [
        {"modality": "video", "offset": 1, "length": length, "grid": reported}
    ]
