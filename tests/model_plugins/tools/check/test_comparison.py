"""The differences between a reference and a run, without an engine: the run is the reference itself."""

from dataclasses import replace

import numpy as np
import pytest

from prismoe.model_plugins.tools.check.comparison import Comparison, compare
from prismoe.model_plugins.tools.check.engine import Run
from prismoe.model_plugins.tools.check.reference import Case, read_reference
from prismoe.model_plugins.tools.checkpoint_facts import CheckpointFacts, checkpoint_facts
from tests.model_plugins.engine import PHI

REFERENCE = PHI / "reference_deterministic.npz"
SIZE = 58
EXPERTS = {0: 4, 2: 4}


@pytest.fixture(scope="module")
def facts() -> CheckpointFacts:
    return checkpoint_facts(PHI)


@pytest.fixture(scope="module")
def case(facts: CheckpointFacts) -> Case:
    return read_reference(REFERENCE, facts).cases[0]


@pytest.fixture
def run(case: Case) -> Run:
    """A run with exactly the reference's results."""
    rows = {name: values.copy() for name, values in case.expected.items() if "greedy" not in name}
    rows["logits"] = np.concatenate([rows["logits"], case.expected["greedy_prefill_logits"][1:]])
    return Run(rows, case.expected["greedy_ids"].tolist())


def altered(case: Case, name: str, at: tuple[int, ...], value: float | np.ndarray) -> Case:
    values = case.expected[name].copy()
    values[at] = value
    return replace(case, expected={**case.expected, name: values})


def broken(case: Case, run: Run) -> list[Comparison]:
    return [comparison for comparison in compare(case, run, EXPERTS) if not comparison.within]


def compared(case: Case, run: Run, array: str) -> Comparison:
    return next(comparison for comparison in compare(case, run, EXPERTS) if comparison.array == array)


def test_every_array_is_compared_and_equal(case: Case, run: Run) -> None:
    comparisons = compare(case, run, EXPERTS)
    assert {comparison.array for comparison in comparisons} == {
        *("inputs_embeds", "logits", "greedy_ids", "greedy_prefill_logits"),
        *(
            f"layer{layer}_{kind}"
            for layer in (0, 2)
            for kind in ("router_logits", "topk_ids", "topk_weights", "combine")
        ),
    }
    assert max(comparison.difference for comparison in comparisons) < 1e-5
    assert broken(case, run) == []


@pytest.mark.parametrize(
    ("name", "at"),
    [
        ("inputs_embeds", (40, 3)),
        ("logits", (57, 511)),
        ("layer0_router_logits", (0, 0)),
        ("layer2_topk_weights", (31, 1)),
        ("layer2_combine", (5, 2)),
        ("greedy_prefill_logits", (11, 7)),
    ],
)
def test_a_different_value_is_named_with_its_place(
    case: Case, run: Run, name: str, at: tuple[int, int]
) -> None:
    other = altered(case, name, at, case.expected[name][at] + 0.01)
    (comparison,) = broken(other, run)
    assert (comparison.array, comparison.at) == (name, list(at))
    assert comparison.difference == pytest.approx(0.01, rel=1e-3)


def test_a_value_that_is_nan_is_broken(case: Case, run: Run) -> None:
    run.rows["logits"][3, 4] = np.nan
    (comparison,) = broken(case, run)
    assert (comparison.array, comparison.difference, comparison.at) == ("logits", float("inf"), [3, 4])


@pytest.mark.parametrize("expert", ["another", "beyond the last", "the same twice"])
def test_a_different_expert_is_named(case: Case, run: Run, expert: str) -> None:
    first, second = case.expected["layer2_topk_ids"][9].tolist()
    unchosen = next(index for index in range(4) if index not in (first, second))
    value = {"another": unchosen, "beyond the last": 7, "the same twice": first}[expert]
    (comparison,) = broken(altered(case, "layer2_topk_ids", (9, 1), value), run)
    assert (comparison.array, comparison.difference, comparison.at) == ("layer2_topk_ids", 1, [9])
    assert comparison.ties == []


def test_a_worse_expert_is_not_a_tie(case: Case, run: Run) -> None:
    weakest = int(run.rows["layer2_router_logits"][9].argmin())
    run.rows["layer2_topk_ids"][9, 1] = weakest
    (comparison,) = broken(case, run)
    assert (comparison.array, comparison.at) == ("layer2_topk_ids", [9])


def test_experts_in_another_order_are_the_same(case: Case, run: Run) -> None:
    for name in ("layer0_topk_ids", "layer0_topk_weights"):
        case = altered(case, name, (4,), case.expected[name][4, ::-1])
    assert broken(case, run) == []


def test_a_tie_is_listed_but_not_broken(case: Case, run: Run) -> None:
    logits_E = run.rows["layer0_router_logits"][9]
    first, second = case.expected["layer0_topk_ids"][9].tolist()
    third = int(np.argsort(-logits_E)[2])
    logits_E[second] = logits_E[third] + 5e-5
    case = altered(case, "layer0_topk_ids", (9, 1), third)
    case = altered(case, "layer0_router_logits", (9,), logits_E)
    case = altered(case, "layer0_combine", (9,), 0)
    assert broken(case, run) == []
    (tie,) = compared(case, run, "layer0_topk_ids").ties
    assert (tie.at, tie.chosen, tie.reference) == (9, sorted([first, second]), [first, third])
    assert tie.gap == pytest.approx(5e-5, rel=0.01)


def test_an_unused_slot_is_not_an_expert(case: Case, run: Run) -> None:
    rows = dict(run.rows)
    for name, fill in (
        ("topk_ids", run.rows["layer0_topk_ids"][:, :1]),
        ("topk_weights", 0 * run.rows["layer0_topk_weights"][:, :1]),
    ):
        rows[f"layer0_{name}"] = np.concatenate([rows[f"layer0_{name}"], fill], axis=1)
    assert broken(case, replace(run, rows=rows)) == []


def test_weights_without_ids_are_compared_by_size(case: Case, run: Run) -> None:
    expected = {name: values for name, values in case.expected.items() if name == "layer0_topk_weights"}
    assert broken(replace(case, expected=expected), run) == []
    expected["layer0_topk_weights"] = expected["layer0_topk_weights"] + 0.01
    assert len(broken(replace(case, expected=expected), run)) == 1


def test_a_smaller_vocabulary_is_compared_up_to_its_size(case: Case, run: Run) -> None:
    case = replace(case, expected={"logits": case.expected["logits"][:, :401]})
    (comparison,) = compare(case, run, EXPERTS)
    assert comparison.within and comparison.count == SIZE * 401


def test_a_different_greedy_token_is_named_and_ends_the_comparison(case: Case, run: Run) -> None:
    run.greedy_ids[5:] = [1] * 7
    run.rows["logits"][SIZE + 5 :] = 0
    (comparison,) = broken(case, run)
    assert (comparison.array, comparison.difference, comparison.at) == ("greedy_ids", 7, [5])
    logits = case.expected["greedy_prefill_logits"]
    assert compared(case, run, "greedy_prefill_logits").count == logits[:6].size  # and the other token's


def test_a_greedy_tie_is_listed(case: Case, run: Run) -> None:
    logits_V = run.rows["logits"][SIZE + 4]
    logits_V[1] = logits_V.max() + 1e-4
    run.greedy_ids[5] = 1
    expected = case.expected["greedy_prefill_logits"].copy()
    expected[5] = logits_V
    case = replace(case, expected={**case.expected, "greedy_prefill_logits": expected})
    assert broken(case, run) == []
    ids = compared(case, run, "greedy_ids")
    assert [(tie.at, tie.chosen) for tie in ids.ties] == [(5, [1])]


def test_a_router_without_logits_does_not_match(case: Case, run: Run) -> None:
    rows = {**run.rows, "layer0_router_logits": run.rows["layer0_router_logits"][:, :0]}
    (comparison,) = broken(case, replace(run, rows=rows))
    assert (comparison.array, comparison.difference) == ("layer0_router_logits", float("inf"))
