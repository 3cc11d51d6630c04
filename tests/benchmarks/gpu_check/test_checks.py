"""The list of GPU checks is complete, and the checks that can run on CPU pass."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from prismoe.benchmarks.gpu_check import checks, host, kernels, ratios
from prismoe.benchmarks.gpu_check.cases import CASES, weights_digest
from prismoe.benchmarks.gpu_check.check import Host, Later, Line
from prismoe.benchmarks.gpu_check.engines import differences
from prismoe.benchmarks.gpu_check.golden import read
from prismoe.benchmarks.gpu_check.ratios import Shape
from prismoe.benchmarks.gpu_check.run import LINES, kept_lines, run_checks
from tests.benchmarks.kernels.test_bench_gpu import without_gpu  # noqa: F401
from tests.kernels.triton_on_cpu import triton_on_cpu  # noqa: F401

DRY = Host(is_dry=True)
NAMES = [check.name for check in checks.CHECKS]
REHEARSED = ["host", "eager: phi"]
"""The cases that run here, since each engine takes a quarter of a minute of CPU time."""


def test_eager_engines_come_before_graphs() -> None:
    assert len(set(NAMES)) == len(NAMES)
    stages = list(dict.fromkeys(name.partition(":")[0] for name in NAMES))
    in_tree = ["in-tree eager", "in-tree graphs"]
    assert stages == ["host", "kernels", "eager", "graphs", "plain kernels", *in_tree, "ratios"]


def test_each_check_names_a_function_with_matching_arguments() -> None:
    for check in checks.CHECKS:
        assert isinstance(check.run, Later)
        inspect.signature(check.run.function()).bind(DRY, **check.run.arguments)


def test_no_check_imports_test_dependencies() -> None:
    left_out = ("pytest", "hypothesis", "schemathesis", "playwright")
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({left_out}))\n"
        f"from {checks.__name__} import CHECKS\n"
        "for check in CHECKS: check.run.function()"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_the_list_is_imported_without_torch() -> None:
    """A failing import fails checks, not the command."""
    program = (
        f"import sys, {checks.__name__}, prismoe.benchmarks.gpu_check.run; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


@pytest.mark.parametrize("name", CASES)
def test_the_golden_figures_match_these_checkpoints_and_requests(name: str) -> None:
    case, golden = CASES[name], read()[name]
    with case.folder() as folder:
        assert weights_digest(folder) == golden.weights
        assert len(case.requests(folder)) == len(golden.answers)
    assert differences(golden, golden) == []


def test_differences_are_described() -> None:
    golden = read()["phi"]
    answers = [golden.answers[0].model_copy(update={"tokens": [1]}), *golden.answers[1:]]
    tails = [golden.tail_tokens[0] + 2, *golden.tail_tokens[1:]]
    other = golden.model_copy(update={"answers": answers, "tail_tokens": tails})
    assert differences(other, golden) == [
        f"request 0 gets the answer [1] instead of {golden.answers[0].tokens}",
        "1 of 2 tail_tokens differ, by 2 at most",
    ]
    assert differences(golden.model_copy(update={"weights": ""}), golden) == [
        "the checkpoint that this host generates has other weights"
    ]


def test_a_host_without_a_gpu_is_reported() -> None:
    with pytest.raises(ValueError, match=r"^PyTorch sees no GPU here: .* or use --dry\.$"):
        host.described(Host(is_dry=False))


@pytest.mark.engine
def test_a_dry_run_gives_the_golden_answers_and_counts(tmp_path: Path) -> None:
    others = [Line(name=name, outcome="skipped", seconds=0) for name in NAMES if name not in REHEARSED]
    (tmp_path / LINES).write_text("".join(f"{line.model_dump_json()}\n" for line in others))
    failed = run_checks(checks.__name__, tmp_path, is_dry=True, limit_s=550)
    assert (failed, [line.name for line in kept_lines(tmp_path)[len(others) :]]) == (0, REHEARSED)


def test_failing_kernels_are_reported_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def check(policy: object, experts: int, device: str) -> None:
        assert experts == 4 and device == "cpu"
        assert getattr(policy, "policy", None) != "gmm", "experts differ\nmore"

    monkeypatch.setattr(kernels, "check_fused_routing", check)
    with pytest.raises(AssertionError, match=r"^gmm \(experts differ"):
        kernels.fused_routing(DRY, 4)


@pytest.mark.usefixtures("triton_on_cpu")
def test_unused_slots_read_no_unwritten_memory() -> None:
    assert kernels.left_out_slots(DRY, tokens=20, hidden=24, width=32)["largest error"] < 1e-4  # type: ignore[operator]


@pytest.mark.usefixtures("triton_on_cpu", "without_gpu")
def test_ratios_of_skipped_experts() -> None:
    figures = ratios.skipped_experts(DRY, 20, Shape(experts=4, top_k=2, hidden=16, width=24))
    assert figures["60% predicted"] == pytest.approx(40 / 20, rel=0.1)
    assert all(float(figure) > 0 for figure in figures.values())
    assert {"30%", "60%", "88%", "fused router, µs", "plain router, µs"} < set(figures)


def test_ratios_of_ragged_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = ("fixed k = 2", "left out", "weight 0", "grouped", "grouped_mm", "loop", "floor")
    row = {f"{way}, ms": 2.0 + place for place, way in enumerate(ways)} | {"experts used": 1.2}
    monkeypatch.setattr(ratios, "experts_on_gpu", lambda dtype, hidden, tokens: row)
    assert ratios.ragged_experts(DRY, 64)["weight 0"] == 2.0
