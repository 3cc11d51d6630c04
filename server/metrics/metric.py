"""What a metric of prismoe's is, and what both levels of metrics share."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from prismoe.kernels import balance
from prismoe.kernels.balance import Counts
from prismoe.kernels.modalities import MODALITIES
from prismoe.server.metrics.expert_load import ExpertLoad
from prismoe.server.metrics.load_window import WINDOW_S, Counted
from prismoe.server.metrics.text_format import Family, Kind

WINDOW = f"in the last {WINDOW_S // 60} minutes"
LOADS = (*MODALITIES, "all")


@dataclass(frozen=True)
class Reading:
    """What the metrics are computed from."""

    load: ExpertLoad
    window: Counted
    failures: int
    """How often a reading failed."""


@dataclass(frozen=True)
class Metric:
    """A metric, and its values in the order of its series; NaN where there is nothing to tell."""

    family: Family
    values: Callable[[Reading], Iterable[float]]


def metric(
    model_name: str,
    name: str,
    kind: Kind,
    help_text: str,
    values: Callable[[Reading], Iterable[float]],
    unit: str = "",
    labels: Sequence[str] = (),
    label_values: Iterable[Sequence[str]] = ((),),
    bounds: Sequence[float] = (),
) -> Metric:
    """An entry, with the label `model_name` behind its own."""
    of_this_model = [(*values_of_one, model_name) for values_of_one in label_values]
    family = Family(name, kind, help_text, [*labels, "model_name"], of_this_model, unit, bounds)
    return Metric(family, values)


def confidence_metrics(
    entry: Callable[..., Metric],
    prefix: str,
    help_end: str,
    flat: Callable[[Sequence[Sequence[float]]], Iterable[float]],
) -> list[Metric]:
    """What routers that give probabilities made of their tokens; `flat` makes series of lists by layer."""

    def count_and_sum(reading: Reading, sums: Sequence[Sequence[float]]) -> Iterator[float]:
        return chain.from_iterable(zip(flat(reading.load.scored_tokens), flat(sums), strict=True))

    return [
        entry(
            f"{prefix}_near_tie_tokens",
            "counter",
            f"Tokens whose last used expert scored less than 0.01 above the best unused one{help_end}",
            lambda reading: flat(reading.load.near_ties),
            unit="tokens",
        ),
        entry(
            f"{prefix}_routing_entropy_nats",
            "summary",
            f"Entropy of the tokens' routing probabilities{help_end}",
            lambda reading: count_and_sum(reading, reading.load.routing_entropy),
            unit="nats",
        ),
        entry(
            f"{prefix}_routing_probability_variance",
            "summary",
            f"RPV, the variance of the tokens' routing probabilities{help_end}",
            lambda reading: count_and_sum(reading, reading.load.routing_variance),
        ),
    ]


def variations(used_ME: Counts) -> list[float]:
    """The variation of each of LOADS."""
    return [balance.variation(load_E) for load_E in (*used_ME, used_ME.sum(axis=0))]
