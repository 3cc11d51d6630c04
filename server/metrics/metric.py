"""The class of prismoe's metrics, and the metrics that both levels share."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from prismoe.server.metrics.expert_load import ExpertLoad
from prismoe.server.metrics.load_window import WINDOW_S, Counted
from prismoe.server.metrics.text_format import Family, Kind

WINDOW = f"in the last {WINDOW_S // 60} minutes"


@dataclass(frozen=True)
class Reading:
    """The data that the metrics are computed from."""

    load: ExpertLoad
    window: Counted
    failures: int
    """The number of readings that failed."""


@dataclass(frozen=True)
class Metric:
    """A metric, and the function that computes its values in the order of its series; NaN for no value."""

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
    """Return a metric with the label `model_name` after its own labels."""
    of_this_model = [(*values_of_one, model_name) for values_of_one in label_values]
    family = Family(name, kind, help_text, [*labels, "model_name"], of_this_model, unit, bounds)
    return Metric(family, values)


def confidence_metrics(
    entry: Callable[..., Metric],
    prefix: str,
    help_end: str,
    flat: Callable[[Sequence[Sequence[float]]], Iterable[float]],
) -> list[Metric]:
    """Return the metrics about the routers' scores of the sampled tokens.

    `flat` turns lists by layer and modality into the values of the series.
    """

    def count_and_sum(reading: Reading, sums: Sequence[Sequence[float | None]]) -> Iterator[float]:
        counts = [
            [math.nan if value is None else count for count, value in zip(*of_layer, strict=True)]
            for of_layer in zip(reading.load.scored_tokens, sums, strict=True)
        ]
        known = [[math.nan if value is None else value for value in of_layer] for of_layer in sums]
        return chain.from_iterable(zip(flat(counts), flat(known), strict=True))

    return [
        entry(
            f"{prefix}_near_ties",
            "summary",
            "Sampled tokens, and how many of them have a last used expert that scored less than 0.01 above "
            f"the best unused one{help_end}",
            lambda reading: count_and_sum(reading, reading.load.near_ties),
        ),
        entry(
            f"{prefix}_routing_entropy_nats",
            "summary",
            f"Entropy of the sampled tokens' routing probabilities{help_end}",
            lambda reading: count_and_sum(reading, reading.load.routing_entropy),
            unit="nats",
        ),
        entry(
            f"{prefix}_routing_probability_variance",
            "summary",
            f"RPV, the variance of the sampled tokens' routing probabilities{help_end}",
            lambda reading: count_and_sum(reading, reading.load.routing_variance),
        ),
    ]
