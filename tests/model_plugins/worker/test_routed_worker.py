"""prismoe's worker, in cases that an engine on CPU can't show."""

from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from vllm.config import VllmConfig
from vllm.model_executor.layers.fused_moe.experts.flashinfer_cutlass_moe import FlashInferExperts
from vllm.platforms import current_platform

from prismoe.model_plugins.moe_layer import kernel_check
from prismoe.model_plugins.moe_layer.attached.attach import NOT_SHOWN
from prismoe.model_plugins.moe_layer.attached.native import NativeRouting
from prismoe.model_plugins.moe_layer.attached.policies import AttachedPolicies
from prismoe.model_plugins.moe_layer.model_routing import ModelRouting, PolicyRouting
from prismoe.model_plugins.moe_layer.self_check import FoundWrong, LayerSums
from prismoe.model_plugins.worker import routed_worker
from prismoe.model_plugins.worker.engine_options import additional_config
from prismoe.model_plugins.worker.routed_worker import RoutedWorker
from tests.model_plugins.moe_layer.attached.test_shadow import SHADOW, TOKENS, Model, routing_of
from tests.model_plugins.moe_layer.native_layers import kernel_of, moe_layer
from tests.model_plugins.moe_layer.test_self_check import FOUND, choose_without_the_router
from tests.model_plugins.routing.routing_steps import CASES, make
from tests.model_plugins.routing.test_calibrated import MEASURED, MODEL


def test_counts_of_the_warm_up_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA the V2 runner warms up with requests that look real."""
    worker: Any = object.__new__(RoutedWorker)
    worker.routing = Mock(name="routing", layers={})
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
    """The checkpoint is a MoE-LLaVA, with --moe-backend naming the kernel or with quantised experts."""
    layer, policy = moe_layer(3, **kernel_of(FlashInferExperts)), make(CASES[case])
    monkeypatch.setattr(current_platform, "is_cuda", lambda: True)
    monkeypatch.setattr(routed_worker, "runners_of", lambda model: [layer])
    monkeypatch.setattr(RoutedWorker.__bases__[-1], "load_model", lambda self: None)
    worker: Any = object.__new__(RoutedWorker)
    worker.vllm_config = SimpleNamespace(additional_config={})
    in_force = SimpleNamespace(layers={3: SimpleNamespace(policy=policy)})
    worker.model_runner = Mock()
    worker.model_runner.get_model().routing = Mock(PolicyRouting, in_force=in_force)
    message = "The policy ltdr leaves slots unused, and the kernel of layer 3"
    with pytest.raises(ValueError, match=message) if refused else nullcontext():
        worker.load_model()


def test_graphs_of_plain_kernels_are_not_used_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM keeps compiled graphs, and finds them by its configuration before it traces the model."""
    monkeypatch.setattr(kernel_check, "get_tp_group", lambda: SimpleNamespace(world_size=1))
    monkeypatch.setattr(routed_worker, "runners_of", lambda model: [])
    hashes = []
    for plain in ("0", "1"):
        monkeypatch.setenv("PRISMOE_PLAIN_KERNELS", plain)
        load = partial(kernel_check.kernel_works, lambda: None, "routing of this test", "nothing")
        monkeypatch.setattr(RoutedWorker.__bases__[-1], "load_model", lambda self, load=load: load())
        worker: Any = object.__new__(RoutedWorker)
        worker.vllm_config = VllmConfig(additional_config=additional_config(None))
        worker.model_runner = Mock()
        worker.model_runner.get_model().routing = Mock(PolicyRouting)
        worker.load_model()
        hashes.append(worker.vllm_config.compute_hash())
    assert hashes[0] != hashes[1]


class ModelRunner:
    """Runs dummy steps of a model. If it is `damaged`, layer 3 is routed without its router."""

    uniform_decode_query_len = 1

    def __init__(self, model: Model) -> None:
        self.get_model = lambda: model
        self.taken: list[int] = []

    def _dummy_run(self, num_tokens: int, *, uniform_decode: bool, skip_eplb: bool) -> None:
        assert uniform_decode and skip_eplb
        self.taken.append(num_tokens)
        self.get_model()(num_tokens)


def loaded(monkeypatch: pytest.MonkeyPatch, model: Model, routing: ModelRouting) -> Any:
    """A worker with a loaded model."""
    worker = object.__new__(RoutedWorker)
    scheduler = SimpleNamespace(max_num_seqs=8, max_num_batched_tokens=TOKENS)
    named = SimpleNamespace(architecture="Some", is_multimodal_model=False)
    config: Any = SimpleNamespace(model_config=named, scheduler_config=scheduler)
    vars(worker).update(routing=routing, model_runner=ModelRunner(model), vllm_config=config)
    monkeypatch.setattr(RoutedWorker.__bases__[-1], "compile_or_warm_up_model", lambda self: None)
    return worker


def started(monkeypatch: pytest.MonkeyPatch, damaged: bool, shadow: dict[str, Any] | None = None) -> Any:
    """A worker with a loaded and warm model."""
    model = Model()
    routing = routing_of(model, shadow)
    if damaged:
        choose_without_the_router(model, routing)
    worker = loaded(monkeypatch, model, routing)
    worker.compile_or_warm_up_model()
    assert worker.model_runner.taken == [5]
    return worker


def test_the_log_has_the_self_checks_result(monkeypatch: pytest.MonkeyPatch) -> None:
    logger = Mock()
    monkeypatch.setattr(routed_worker, "logger", logger)
    worker = started(monkeypatch, damaged=False)
    assert [*worker.routing.layers] == [1, 3]
    [(told, *figures)] = [call.args for call in logger.info_once.call_args_list]
    assert (told % (*figures,)).endswith(
        "counted a made-up step of 5 tokens correctly in all of the 2 MoE layers."
    )


def test_a_model_that_would_be_miscounted_is_served_without_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    routing = started(monkeypatch, damaged=True).routing
    assert isinstance(routing, NativeRouting)
    told = routing.describe()
    assert told["layers"] == [] == routing.load()["layers"]
    assert told["not_supported"] == [f"{FOUND.format(written=0, counted=10)} {NOT_SHOWN}"]


def test_nothing_is_counted_after_a_failed_self_check(monkeypatch: pytest.MonkeyPatch) -> None:
    model, scheduled = Model(), SimpleNamespace(total_num_scheduled_tokens=4)
    before = routing_of(model, shadow=None)
    choose_without_the_router(model, before)
    worker = loaded(monkeypatch, model, before)
    worker.compile_or_warm_up_model()
    monkeypatch.setattr(RoutedWorker.__bases__[-1], "execute_model", lambda self, scheduled: model(4))
    worker.model_runner.supports_mm_inputs = False
    assert len(worker.execute_model(scheduled)) == 2
    assert not any(map(sum, before.load()["tokens"]))
    assert worker.routing.load()["tokens"] == []


@pytest.mark.parametrize(
    ("kind", "helps"),
    [
        (PolicyRouting, r"be routed correctly\. .*has 10\. Try --enforce-eager, .* PRISMOE_PLAIN_KERNELS=1"),
        (AttachedPolicies, r"policy can't be used\. .*has 10\. Leave it out"),
    ],
)
def test_a_policy_that_is_miscounted_is_refused(
    kind: type[ModelRouting], helps: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = FoundWrong(5, LayerSums(3, used=10, written=0, counted=10))
    monkeypatch.setattr(routed_worker, "check_counts", lambda *_: wrong)
    routing = Mock(kind, layers={3: None}, routed_by="policy")
    with pytest.raises(ValueError, match=helps):
        loaded(monkeypatch, Model(), routing).compile_or_warm_up_model()


def test_a_shadow_of_a_model_that_would_be_miscounted_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"shadow policy can't be used\. The self-check .*Leave it out"):
        started(monkeypatch, damaged=True, shadow=SHADOW)


@pytest.mark.parametrize("method", ["reload_weights", "start_weight_update"])
@pytest.mark.parametrize("setting", ["routing", "shadow"])
def test_settings_calibrated_for_the_weights_are_accepted(
    setting: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Mock()
    monkeypatch.setattr(RoutedWorker.__bases__[-1], method, asked)
    policy = {"policy": "dual_threshold", "vision_threshold": 0.5}
    for calibrated in ({}, {"calibrated": {"model": MODEL, "measured": MEASURED}}):
        settings: Any = {"routing": None, "shadow": None, setting: policy | calibrated}
        worker: Any = object.__new__(RoutedWorker)
        config = SimpleNamespace(additional_config=additional_config(**settings))
        vars(worker).update(routing=Mock(), vllm_config=config)
        if calibrated:
            with pytest.raises(ValueError, match="calibrated for the model's present weights"):
                getattr(worker, method)()
        else:
            getattr(worker, method)()
    asked.assert_called_once_with()
