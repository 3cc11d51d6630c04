"""The checks in order. Eager engines come before CUDA graphs, so that a failure shows which of them broke."""

from prismoe.benchmarks.gpu_check.check import Check, Later
from prismoe.model_plugins.tools.precise_float32 import PRECISE_FLOAT32

PLAIN = {"PRISMOE_PLAIN_KERNELS": "1", "VLLM_DISABLE_COMPILE_CACHE": "1"}
"""Without the compile cache: a cached graph of another check would contain prismoe's kernels."""
EAGER_S, GRAPHS_S = 120, 150


def _engine(name: str, case: str, *, eager: bool = False, plain: bool = False) -> Check:
    """Run `case` in an engine, and compare the results with golden.json."""
    return Check(
        name,
        EAGER_S if eager else GRAPHS_S,
        Later("engines", "same_as_golden", name=case, is_eager=eager),
        needs_gpu=not eager,  # CUDA graphs can't be replayed on CPU
        environment=PRECISE_FLOAT32 | (PLAIN if plain else {}),
    )


CHECKS = [
    Check("host", 60, Later("host", "described")),
    Check("kernels: written rows", 60, Later("kernels", "written_rows")),
    Check("kernels: fused routing, 4 experts", 90, Later("kernels", "fused_routing", experts=4)),
    Check("kernels: fused routing, 64 experts", 90, Later("kernels", "fused_routing", experts=64), True),
    Check("kernels: grouped product, 4 experts", 90, Later("kernels", "grouped_product", experts=4)),
    Check("kernels: grouped product, 64 experts", 90, Later("kernels", "grouped_product", experts=64), True),
    Check("kernels: slots left out", 60, Later("kernels", "left_out_slots"), True, PRECISE_FLOAT32),
    _engine("eager: phi", "phi", eager=True),
    _engine("eager: prismoji", "prismoji", eager=True),
    _engine("graphs: phi", "phi"),
    _engine("graphs: prismoji", "prismoji"),
    _engine("plain kernels: prismoji", "prismoji", plain=True),
    _engine("in-tree eager: native", "qwen3-vl-moe native", eager=True),
    _engine("in-tree graphs: native", "qwen3-vl-moe native"),
    _engine("in-tree graphs: dual_threshold", "qwen3-vl-moe dual_threshold"),
    Check("ratios: experts, 64 tokens", 60, Later("ratios", "ragged_experts", tokens=64), True),
    Check("ratios: experts, 4608 tokens", 60, Later("ratios", "ragged_experts", tokens=4608), True),
    Check("ratios: skipped experts, 64 tokens", 60, Later("ratios", "skipped_experts", tokens=64), True),
    Check("ratios: skipped experts, 8192 tokens", 60, Later("ratios", "skipped_experts", tokens=8192), True),
    Check("ratios: counting and inspecting", 240, Later("ratios", "watched_engine")),
]
