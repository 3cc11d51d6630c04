"""Slots that vLLM's Triton experts and the grouped product leave out, interpreted, compared with float64."""

from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import Tensor
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.config.kernel import MoEBackend
from vllm.model_executor import custom_op
from vllm.model_executor.layers.fused_moe import fused_moe, unquantized_fused_moe_method
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.config import (
    FusedMoEConfig,
    FusedMoEParallelConfig,
    RoutingMethodType,
)
from vllm.model_executor.layers.fused_moe.expert_map_manager import ExpertMapManager
from vllm.model_executor.layers.fused_moe.experts import triton_moe
from vllm.model_executor.layers.fused_moe.experts.fused_batched_moe import BatchedTritonExperts
from vllm.model_executor.layers.fused_moe.experts.triton_moe import TritonExperts
from vllm.model_executor.layers.fused_moe.oracle.unquantized import UnquantizedMoeBackend
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import (
    CompressedTensorsConfig,
)
from vllm.utils.torch_utils import set_default_torch_dtype

from prismoe.kernels.triton import experts_check as grouped_check
from prismoe.kernels.triton.experts import grouped_experts
from prismoe.model_plugins.moe_layer import kernel_check
from prismoe.model_plugins.moe_layer.experts import by_platform, gpu_experts
from prismoe.model_plugins.moe_layer.experts.gpu_experts import GPURoutedExperts
from tests.kernels import reference
from tests.kernels.ragged_routing import ragged_routing
from tests.kernels.triton_on_cpu import triton_on_cpu  # noqa: F401
from tests.model_plugins.routing.routing_steps import CASES, make

HIDDEN, WIDTH, SLOTS = 40, 72, 4
TRITON = UnquantizedMoeBackend.TRITON, TritonExperts


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * shape[-1] ** -0.5


def layer(
    monkeypatch: pytest.MonkeyPatch,
    backend: tuple[UnquantizedMoeBackend, type] = TRITON,
    experts: int = 4,
    gated: bool = True,
    dtype: torch.dtype = torch.float32,
    slots: int = SLOTS,
    activation: MoEActivation = MoEActivation.SILU,
    moe_backend: MoEBackend = "auto",
    expert_ranks: int = 1,
) -> GPURoutedExperts:
    """A layer like vLLM's on CUDA: gated like StableLM's and Qwen's experts, or biased like Phi's.

    With several expert-parallel ranks it is the last rank's.
    """
    monkeypatch.setattr(
        unquantized_fused_moe_method, "select_unquantized_moe_backend", lambda moe_config: backend
    )
    parallel = replace(
        FusedMoEParallelConfig.make_no_parallel(),
        ep_size=expert_ranks,
        ep_rank=expert_ranks - 1,
        use_ep=expert_ranks > 1,
    )
    with set_current_vllm_config(VllmConfig()):
        config = FusedMoEConfig(
            num_experts=experts,
            experts_per_token=slots,
            hidden_dim=HIDDEN,
            intermediate_size=WIDTH,
            num_local_experts=experts // expert_ranks,
            num_logical_experts=experts,
            activation=activation,
            device="cpu",
            routing_method=RoutingMethodType.Custom,
            moe_parallel_config=parallel,
            in_dtype=dtype,
            has_bias=not gated,
            moe_backend=moe_backend,
        )
        if not gated:  # the configuration refuses this on CPU
            config.activation = MoEActivation.GELU_TANH_NO_MUL
        maps = ExpertMapManager(64, SLOTS, experts, 0, None, parallel, "linear", enable_eplb=False)
        names = {} if gated else {"ckpt_up_proj_name": None}
        made = GPURoutedExperts("experts", dtype, config, None, maps, **names)
        for seed, parameter in enumerate(made.parameters()):
            parameter.data.copy_(random(*parameter.shape, seed=seed))
        if backend == TRITON:
            made.quant_method.process_weights_after_loading(made)
    return made


def computed(made: GPURoutedExperts, hidden_TD: Tensor, weights_TA: Tensor, experts_TA: Tensor) -> Tensor:
    output_TD = made.forward_modular(hidden_TD, weights_TA, experts_TA)
    assert isinstance(output_TD, Tensor)
    return output_TD


def expected(
    layer: GPURoutedExperts, hidden_TD: Tensor, weights_TA: Tensor, experts_TA: Tensor
) -> np.ndarray:
    weights = {name: value.double().numpy() for name, value in layer.named_parameters()}

    def expert(index: int, row: np.ndarray) -> np.ndarray:
        up = weights["w13_weight"][index] @ row
        if layer.moe_config.has_bias:
            up = reference.gelu_tanh(up + weights["w13_bias"][index])
        else:
            gate, up = np.split(up, 2)
            up = reference.silu(gate) * up
        output: np.ndarray = weights["w2_weight"][index] @ up
        return output + weights["w2_bias"][index] if layer.moe_config.has_bias else output

    return reference.moe(hidden_TD.double().numpy(), weights_TA.double().numpy(), experts_TA.numpy(), expert)


@pytest.mark.usefixtures("triton_on_cpu")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 0.002)], ids=str)
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "plain"])
@pytest.mark.parametrize(("tokens", "experts"), [(1, 4), (1, 64), (3, 2), (7, 5), (65, 4)])
def test_the_used_slots_are_summed(
    monkeypatch: pytest.MonkeyPatch,
    tokens: int,
    experts: int,
    gated: bool,
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    """Some tokens name an expert twice, and some experts get no token.

    Rows that are never written hold NaN.
    """
    made = layer(monkeypatch, experts=experts, gated=gated, dtype=dtype)
    weights_TA, experts_TA = ragged_routing(tokens, experts, SLOTS)
    hidden_TD = random(tokens, HIDDEN, seed=tokens).to(dtype)
    actual_TD = computed(made, hidden_TD, weights_TA, experts_TA)
    np.testing.assert_allclose(
        actual_TD.double(), expected(made, hidden_TD, weights_TA, experts_TA), atol=tolerance, rtol=tolerance
    )


@pytest.mark.slow
@pytest.mark.usefixtures("triton_on_cpu")
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "plain"])
@pytest.mark.parametrize(
    ("dtype", "tolerance", "tokens", "slots", "most_rows", "rows"),
    [
        (torch.float32, 1e-5, 1, 64, 65536, 64),
        (torch.float32, 1e-5, 20, 9, 150, 144),
        (torch.float16, 0.002, 20, 9, 150, 144),
        (torch.float16, 0.002, 300, 9, 65536, 2700),
    ],
    ids=["one token", "chunks", "chunks of few rows", "many rows"],
)
def test_many_slots_are_a_grouped_product(
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    tolerance: float,
    tokens: int,
    slots: int,
    most_rows: int,
    rows: int,
    gated: bool,
) -> None:
    """The workspace has a bounded number of rows, and is filled with NaN."""
    monkeypatch.setattr(gpu_experts, "MOST_ROWS", most_rows)
    monkeypatch.setattr(gpu_experts, "grouped_product_works", lambda *sizes: True)
    grouped = Mock(wraps=grouped_experts)
    monkeypatch.setattr(gpu_experts, "grouped_experts", grouped)
    made = layer(monkeypatch, experts=64, gated=gated, dtype=dtype, slots=slots)
    weights_TA, experts_TA = ragged_routing(tokens, 64, slots)
    hidden_TD = random(tokens, HIDDEN, seed=tokens).to(dtype)
    actual_TD = computed(made, hidden_TD, weights_TA, experts_TA)
    np.testing.assert_allclose(
        actual_TD.double(), expected(made, hidden_TD, weights_TA, experts_TA), atol=tolerance, rtol=tolerance
    )
    assert [len(call.args[8]) for call in grouped.call_args_list] == [rows]


@pytest.mark.usefixtures("triton_on_cpu")
@pytest.mark.parametrize(
    ("slots", "activation", "works", "is_grouped"),
    [
        (9, MoEActivation.SILU, True, True),
        (8, MoEActivation.SILU, True, False),
        (9, MoEActivation.GELU, True, False),
        (9, MoEActivation.SILU, False, False),
    ],
    ids=["many slots", "few slots", "another activation", "fails the check"],
)
def test_vllms_kernels_replace_an_unsuitable_grouped_product(
    monkeypatch: pytest.MonkeyPatch, slots: int, activation: MoEActivation, works: bool, is_grouped: bool
) -> None:
    run = Mock(wraps=fused_moe.invoke_fused_moe_triton_kernel)
    monkeypatch.setattr(triton_moe, "invoke_fused_moe_triton_kernel", run)
    monkeypatch.setattr(gpu_experts, "grouped_product_works", lambda *sizes: works)
    made = layer(monkeypatch, experts=16, slots=slots, activation=activation)
    weights_TA, experts_TA = ragged_routing(3, 16, slots)
    assert computed(made, random(3, HIDDEN, seed=1), weights_TA, experts_TA).isfinite().all()
    assert run.called is not is_grouped


def test_a_batch_invariant_engine_uses_vllms_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The grouped product's sums have another order in steps of another size."""
    monkeypatch.setattr(gpu_experts, "grouped_product_works", lambda *sizes: True)
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "1")
    experts: Any = layer(monkeypatch, experts=16, slots=9).quant_method
    assert not experts.moe_kernel.fused_experts._is_grouped


@pytest.mark.slow
@pytest.mark.usefixtures("triton_on_cpu")
@pytest.mark.parametrize("is_gated", [True, False])
def test_the_start_check_finds_a_wrong_grouped_product(
    monkeypatch: pytest.MonkeyPatch, is_gated: bool
) -> None:
    inputs = "cpu", torch.float16, 9, is_gated
    works = gpu_experts.grouped_product_works.__wrapped__  # without its cache
    monkeypatch.setattr(kernel_check, "get_tp_group", lambda: Mock(world_size=1))
    with torch.device("meta"), set_default_torch_dtype(torch.float16):  # like while a model is loaded
        assert works(*inputs)
    monkeypatch.setattr(grouped_check, "grouped_experts", lambda *inputs: inputs[-1].zero_())
    assert not works(*inputs)


@pytest.mark.usefixtures("triton_on_cpu")
def test_unused_slots_get_no_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first product writes as many rows as there are used slots, and so does the second."""
    made = layer(monkeypatch)
    weights_TA, experts_TA = ragged_routing(20, 4, SLOTS)
    written = []
    run = fused_moe.invoke_fused_moe_triton_kernel

    def counted(hidden: Any, weights: Any, rows: Tensor, *arguments: Any, **named: Any) -> None:
        rows.fill_(torch.nan)
        run(hidden, weights, rows, *arguments, **named)
        written.append(int(rows.isfinite().all(dim=-1).sum()))

    monkeypatch.setattr(triton_moe, "invoke_fused_moe_triton_kernel", counted)
    computed(made, random(20, HIDDEN, seed=1), weights_TA, experts_TA)
    used = int(weights_TA.count_nonzero())
    assert written == [used, used] != [weights_TA.numel()] * 2


@pytest.mark.usefixtures("triton_on_cpu")
def test_without_an_expert_map_an_unused_slot_would_spoil_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    made = layer(monkeypatch)
    vars(made)["_expert_map"] = None
    weights_TA, experts_TA = ragged_routing(7, 4, SLOTS)
    assert computed(made, random(7, HIDDEN, seed=1), weights_TA, experts_TA).isnan().any()


def test_other_kernels_get_the_slots_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    made = layer(monkeypatch, backend=(UnquantizedMoeBackend.BATCHED_TRITON, BatchedTritonExperts))
    assert made.expert_map is None
    apply = Mock()
    monkeypatch.setattr(made.quant_method, "apply", apply)
    weights_TA, experts_TA = ragged_routing(7, 4, SLOTS)
    made.forward_modular(random(7, HIDDEN, seed=1), weights_TA, experts_TA)
    assert torch.equal(apply.call_args.kwargs["topk_ids"], experts_TA)


@pytest.mark.usefixtures("triton_on_cpu")
@pytest.mark.parametrize("slots", [SLOTS, gpu_experts.FEW_SLOTS + 1])
def test_a_rank_with_some_of_the_experts_computes_its_part(
    monkeypatch: pytest.MonkeyPatch, slots: int
) -> None:
    """vLLM's map says where the other experts are."""
    made = layer(monkeypatch, expert_ranks=2, slots=slots)
    method: Any = made.quant_method
    assert method.experts_cls is TritonExperts
    weights_TA, experts_TA = ragged_routing(7, 4, slots)
    hidden_TD = random(7, HIDDEN, seed=1)
    own_TA = torch.where(experts_TA >= 2, weights_TA, 0)
    np.testing.assert_allclose(
        computed(made, hidden_TD, weights_TA, experts_TA),
        expected(made, hidden_TD, own_TA, (experts_TA - 2).clamp(min=0)),
        atol=1e-5,
        rtol=1e-5,
    )


@pytest.mark.parametrize(
    ("named", "asked"), [("auto", "triton"), ("flashinfer_cutlass", "flashinfer_cutlass")]
)
def test_vllm_uses_its_triton_kernels_unless_others_are_named(
    monkeypatch: pytest.MonkeyPatch, named: MoEBackend, asked: MoEBackend
) -> None:
    """On Blackwell it would use FlashInfer's by default, which can't leave slots unused."""
    assert layer(monkeypatch, moe_backend=named).moe_config.moe_backend == asked


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())
def test_on_cuda_these_experts_serve_policies_that_leave_slots_unused(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    platform = Mock()
    platform.is_cpu.return_value, platform.is_cuda.return_value = False, True
    monkeypatch.setattr(by_platform, "current_platform", platform)
    router = Mock(policy=make(settings))
    options = by_platform.experts_options("silu", router, None)
    experts_cls: type[RoutedExperts] | None = None if router.policy.uses_all_slots else GPURoutedExperts
    assert options.get("routed_experts_cls") is experts_cls


def test_compressed_tensors_quantises_these_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks for vLLM's class by name."""
    channel = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}
    groups = {"group_0": {"targets": ["Linear"], "weights": channel}}
    config = CompressedTensorsConfig.from_config({"format": "float-quantized", "config_groups": groups})
    config._add_fused_moe_to_target_scheme_map()
    assert config.get_scheme_dict(layer(monkeypatch), "model.layers.0.mlp.experts.0.up_proj") is not None


def test_vllm_builds_its_own_models_with_these_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(custom_op, "op_registry_oot", registry := dict[str, type]())
    monkeypatch.setattr(gpu_experts, "op_registry_oot", registry)
    assert type(RoutedExperts.__new__(RoutedExperts)) is RoutedExperts
    for _ in range(2):  # an engine can be the second of its process
        gpu_experts.use_in_all_models()
    assert type(RoutedExperts.__new__(RoutedExperts)) is GPURoutedExperts
