"""A made-up step at the start finds a layer that is counted not at all, in part or twice."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from torch import Tensor

from prismoe.model_plugins.moe_layer.attached.native import NativeRouting
from prismoe.model_plugins.moe_layer.self_check import FoundWrong, check_counts
from prismoe.model_plugins.vllm_seams.engine.native_router import watch_routing
from tests.model_plugins.moe_layer.attached.test_shadow import EXPERTS, LOGITS_E, TOP_K, Model, routing_of

TOKENS, PADDING = 5, 3
FOUND = (
    "The self-check at the start found wrong counts in layer 3: in a made-up step of 5 tokens, which use 10 "
    "experts there, its router wrote {written} and the counter has {counted}."
)


def found(model: Model, routing: NativeRouting) -> str | None:
    wrong = check_counts(routing, TOKENS, partial(model, TOKENS + PADDING))
    return None if wrong is None else str(wrong)


def choose_without_the_router(model: Model, routing: NativeRouting) -> None:
    """Choose like a kernel that routes by itself, or a graph from before the router was observed."""
    router: Any = model.runners[1].router
    router._compute_routing = type(router)._compute_routing.__get__(router)


def route_a_part(model: Model, routing: NativeRouting) -> None:
    """Route like a step that is split without prismoe's knowledge: the parts overwrite each other."""
    router: Any = model.runners[1].router
    compute = router._compute_routing

    def parted(hidden_TD: Tensor, logits_TE: Tensor, *options: Any) -> Any:
        for part in (slice(4), slice(4, None)):
            routed = compute(hidden_TD[part], logits_TE[part], *options)
        return routed

    router._compute_routing = parted


def leave_a_slot_out(model: Model, routing: NativeRouting) -> None:
    """Choose like a router that chooses fewer experts than vLLM says for its layer."""
    router: Any = model.runners[1].router
    router._compute_routing = lambda *_: routing.routers[3].routed(  # type: ignore[attr-defined]
        None, LOGITS_E.expand(TOKENS, EXPERTS), *(LOGITS_E.expand(TOKENS, EXPERTS).topk(TOP_K - 1))
    )


@pytest.mark.parametrize("shadow", [None, {"policy": "dual_threshold", "vision_threshold": 0.9}])
def test_correct_layers_pass_and_their_counts_are_forgotten(
    shadow: dict[str, Any] | None,
) -> None:
    model = Model()
    routing = routing_of(model, shadow)
    untouched = routing_of(Model(), shadow).load()
    assert found(model, routing) is None
    assert routing.load() == untouched
    model(TOKENS)  # a dummy step of vLLM's
    routing.end_step()
    assert routing.load() == untouched
    routing.step.tokens.mark(None, [], 2)
    model(2)
    routing.end_step()
    assert [sum(tokens) for tokens in routing.load()["tokens"]] == [2, 2]


@pytest.mark.parametrize(
    ("damage", "written"), [(choose_without_the_router, 0), (route_a_part, 8), (leave_a_slot_out, 5)]
)
def test_a_layer_that_does_not_tell_all(damage: Callable[[Model, NativeRouting], None], written: int) -> None:
    model = Model()
    routing = routing_of(model, shadow=None)
    damage(model, routing)
    assert found(model, routing) == FOUND.format(written=written, counted=10)


def test_a_step_that_is_counted_twice_is_found() -> None:
    model = Model()
    routing = routing_of(model, shadow=None)
    routing.step_watchers.append(routing.counter.add)
    assert found(model, routing) == FOUND.replace("layer 3", "layer 1").format(written=10, counted=20)


def test_a_router_that_reports_twice_is_counted_once() -> None:
    model = Model()
    routing = routing_of(model, shadow=None)
    layer: Any = routing.routers[3]
    router: Any = model.runners[1].router
    watch_routing(router, layer.routed)
    assert found(model, routing) is None


def test_a_shadow_without_calls_is_found() -> None:
    model = Model()
    routing = routing_of(model)
    layer: Any = routing.routers[3]
    layer._shadow = None
    wrong = check_counts(routing, TOKENS, partial(model, TOKENS))
    assert isinstance(wrong, FoundWrong)
    assert wrong.sums.written == 0 < wrong.sums.used <= TOKENS * 3
