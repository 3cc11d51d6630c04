"""prismoe's worker, where an engine on CPU doesn't show what it does."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from vllm.model_executor.layers.fused_moe.experts.flashinfer_cutlass_moe import FlashInferExperts
from vllm.platforms import current_platform

from prismoe.model_plugins.moe_layer.model_routing import PolicyRouting
from prismoe.model_plugins.worker import routed_worker
from prismoe.model_plugins.worker.routed_worker import RoutedWorker
from tests.model_plugins.moe_layer.native_layers import kernel_of, moe_layer
from tests.model_plugins.routing.routing_steps import CASES, make


def test_what_is_counted_while_warming_up_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA the V2 runner warms up with requests that look like real ones."""
    worker: Any = object.__new__(RoutedWorker)
    worker.routing = Mock(name="routing")
    happened = Mock()
    happened.attach_mock(worker.routing, "routing")
    vllms = RoutedWorker.__bases__[-1]
    monkeypatch.setattr(vllms, "compile_or_warm_up_model", lambda self: happened.warm_up())
    assert worker.compile_or_warm_up_model() is happened.warm_up.return_value
    assert [name for name, _, _ in happened.mock_calls] == ["warm_up", "routing.reset_load"]


@pytest.mark.parametrize(("case", "refused"), [("topk", False), ("ltdr", True)])
def test_blackwells_kernel_starts_with_no_policy_that_leaves_slots_unused(
    case: str, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a MoE-LLaVA checkpoint, where --moe-backend named it, or experts are quantised."""
    layer, policy = moe_layer(3, **kernel_of(FlashInferExperts)), make(CASES[case])
    monkeypatch.setattr(current_platform, "is_cuda", lambda: True)
    monkeypatch.setattr(routed_worker, "runners_of", lambda model: [layer])
    monkeypatch.setattr(RoutedWorker.__bases__[-1], "load_model", lambda self: None)
    worker: Any = object.__new__(RoutedWorker)
    worker.vllm_config = SimpleNamespace(additional_config={})
    in_force = SimpleNamespace(layers={3: SimpleNamespace(policy=policy)})
    worker.model_runner = Mock()
    worker.model_runner.get_model().routing = Mock(PolicyRouting, in_force=in_force)
    said = "The policy ltdr leaves slots unused, and the kernel of layer 3"
    with pytest.raises(ValueError, match=said) if refused else nullcontext():
        worker.load_model()
