"""prismoe's metrics, one entry each: name, meaning, labels, and its values. docs/metrics.md explains them."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np

from prismoe.server import balance
from prismoe.server.balance import Counts
from prismoe.server.expert_load import MODALITIES, ExpertLoad
from prismoe.server.exposition import Family, Kind
from prismoe.server.load_window import WINDOW_S, Counted
from prismoe.server.routes import RoutingInForce

WINDOW = f"in the last {WINDOW_S // 60} minutes"
LOADS = (*MODALITIES, "all")
EXPERTS_PER_TOKEN = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64, math.inf)
"""The histogram's bounds: the same for every model, so that their buckets add up."""


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


def _metric(
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
    of_this_model = [(*values_of_one, model_name) for values_of_one in label_values]
    family = Family(name, kind, help_text, [*labels, "model_name"], of_this_model, unit, bounds)
    return Metric(family, values)


def summary_metrics(routing: RoutingInForce, model_name: str) -> list[Metric]:
    """The metrics whose number of series does not depend on the model's size."""
    metric = partial(_metric, model_name)
    policies = sorted({str(layer.policy["policy"]) for layer in routing.layers})
    by_modality = [[modality] for modality in MODALITIES]
    return [
        metric(
            "prismoe_routing",
            "info",
            "The routing policies in force, and where they were set.",
            lambda reading: [1] * len(policies),
            labels=["policy", "source"],
            label_values=[[policy, routing.source] for policy in policies],
        ),
        metric(
            "prismoe_tokens",
            "counter",
            "Tokens computed, each once.",
            # Every MoE layer sees every token.
            lambda reading: reading.load.tokens[0] if reading.load.tokens else [math.nan] * len(MODALITIES),
            unit="tokens",
            labels=["modality"],
            label_values=by_modality,
        ),
        metric(
            "prismoe_routed_tokens",
            "counter",
            "Tokens routed, each once in every MoE layer.",
            lambda reading: _sums(reading.load.tokens),
            unit="tokens",
            labels=["modality"],
            label_values=by_modality,
        ),
        metric(
            "prismoe_used_experts",
            "counter",
            "Experts that the routed tokens used.",
            lambda reading: _sums([map(sum, rows) for rows in reading.load.expert_tokens]),
            unit="experts",
            labels=["modality"],
            label_values=by_modality,
        ),
        metric(
            "prismoe_vision_tail_tokens",
            "counter",
            "Vision tokens that were tail tokens, each once in every MoE layer where it was one.",
            lambda reading: [sum(reading.load.tail_tokens)],
            unit="tokens",
        ),
        metric(
            "prismoe_token_experts",
            "histogram",
            "Experts that a token used, each token once in every MoE layer.",
            lambda reading: _histograms(reading.load),
            unit="experts",
            labels=["modality"],
            label_values=by_modality,
            bounds=EXPERTS_PER_TOKEN,
        ),
        *_confidence_metrics(
            partial(metric, labels=["modality"], label_values=by_modality),
            "prismoe",
            ", each token once in every MoE layer.",
            _sums,
        ),
        metric(
            "prismoe_expert_load_variation",
            "gauge",
            f"Coefficient of variation of the experts' load {WINDOW}, mean over the MoE layers.",
            lambda reading: _means(map(_variations, reading.window.used), len(LOADS)),
            labels=["modality"],
            label_values=[[load] for load in LOADS],
        ),
        metric(
            "prismoe_modality_equity_index",
            "gauge",
            f"Share of the experts that both modalities used {WINDOW}; mean over the MoE layers.",
            lambda reading: _means([balance.modality_equity(used_ME)] for used_ME in reading.window.used),
        ),
        metric(
            "prismoe_most_loaded_text_ratio",
            "gauge",
            f"Text share of what the most loaded quarter of the experts got {WINDOW}; "
            "mean over the MoE layers.",
            lambda reading: _means(
                [balance.text_among_most_loaded(used_ME)] for used_ME in reading.window.used
            ),
            unit="ratio",
        ),
        metric(
            "prismoe_idle_experts",
            "gauge",
            f"Experts that no token of the modality used {WINDOW}, over all MoE layers.",
            lambda reading: _sums(map(balance.idle_experts, reading.window.used)),
            unit="experts",
            labels=["modality"],
            label_values=by_modality,
        ),
        metric(
            "prismoe_window_tokens",
            "gauge",
            f"Tokens computed {WINDOW}: what the gauges of expert load rest on.",
            lambda reading: reading.window.tokens_M.tolist(),
            unit="tokens",
            labels=["modality"],
            label_values=by_modality,
        ),
        metric(
            "prismoe_expert_load_reading_failures",
            "counter",
            "How often the expert load could not be read from the engine.",
            lambda reading: [reading.failures],
        ),
    ]


def layer_metrics(load: ExpertLoad, routing: RoutingInForce, model_name: str) -> list[Metric]:
    """The metrics by MoE layer and expert, for a model whose load looks like `load`."""
    metric = partial(_metric, model_name)
    layers = [str(layer) for layer in load.layers]
    by_layer = [[layer] for layer in layers]
    experts = [[str(expert) for expert in range(len(rows[0]))] for rows in load.expert_tokens]
    return [
        metric(
            "prismoe_layer_routing",
            "info",
            "The routing policy in force in a layer.",
            lambda reading: [1] * len(routing.layers),
            labels=["layer", "policy"],
            label_values=[[str(layer.layer), str(layer.policy["policy"])] for layer in routing.layers],
        ),
        metric(
            "prismoe_expert_tokens",
            "counter",
            "Tokens that used an expert.",
            lambda reading: [count for rows in reading.load.expert_tokens for row in rows for count in row],
            unit="tokens",
            labels=["layer", "modality", "expert"],
            label_values=[
                [layer, modality, expert]
                for layer, of_layer in zip(layers, experts, strict=True)
                for modality in MODALITIES
                for expert in of_layer
            ],
        ),
        metric(
            "prismoe_layer_vision_tail_tokens",
            "counter",
            "Vision tokens that were tail tokens in a layer.",
            lambda reading: reading.load.tail_tokens,
            unit="tokens",
            labels=["layer"],
            label_values=by_layer,
        ),
        *_confidence_metrics(
            partial(
                metric,
                labels=["layer", "modality"],
                label_values=[[layer, modality] for layer in layers for modality in MODALITIES],
            ),
            "prismoe_layer",
            ", by layer.",
            chain.from_iterable,
        ),
        metric(
            "prismoe_expert_text_ratio",
            "gauge",
            f"Text share of the tokens that used an expert {WINDOW}.",
            lambda reading: [
                share for used_ME in reading.window.used for share in balance.text_share(used_ME)
            ],
            unit="ratio",
            labels=["layer", "expert"],
            label_values=[
                [layer, expert]
                for layer, of_layer in zip(layers, experts, strict=True)
                for expert in of_layer
            ],
        ),
        metric(
            "prismoe_layer_expert_load_variation",
            "gauge",
            f"Coefficient of variation of a layer's experts' load {WINDOW}.",
            lambda reading: [value for used_ME in reading.window.used for value in _variations(used_ME)],
            labels=["layer", "modality"],
            label_values=[[layer, load] for layer in layers for load in LOADS],
        ),
        metric(
            "prismoe_layer_modality_equity_index",
            "gauge",
            f"Share of a layer's experts that both modalities used {WINDOW}.",
            lambda reading: map(balance.modality_equity, reading.window.used),
            labels=["layer"],
            label_values=by_layer,
        ),
        metric(
            "prismoe_layer_most_loaded_text_ratio",
            "gauge",
            f"Text share of what the most loaded quarter of a layer's experts got {WINDOW}.",
            lambda reading: map(balance.text_among_most_loaded, reading.window.used),
            unit="ratio",
            labels=["layer"],
            label_values=by_layer,
        ),
    ]


def _confidence_metrics(
    metric: Callable[..., Metric],
    prefix: str,
    help_end: str,
    flat: Callable[[Sequence[Sequence[float]]], Iterable[float]],
) -> list[Metric]:
    """What routers that give probabilities made of their tokens; `flat` makes series of lists by layer."""

    def count_and_sum(reading: Reading, sums: Sequence[Sequence[float]]) -> Iterator[float]:
        return chain.from_iterable(zip(flat(reading.load.scored_tokens), flat(sums), strict=True))

    return [
        metric(
            f"{prefix}_near_tie_tokens",
            "counter",
            f"Tokens whose last used expert scored less than 0.01 above the best unused one{help_end}",
            lambda reading: flat(reading.load.near_ties),
            unit="tokens",
        ),
        metric(
            f"{prefix}_routing_entropy_nats",
            "summary",
            f"Entropy of the tokens' routing probabilities{help_end}",
            lambda reading: count_and_sum(reading, reading.load.routing_entropy),
            unit="nats",
        ),
        metric(
            f"{prefix}_routing_probability_variance",
            "summary",
            f"RPV, the variance of the tokens' routing probabilities{help_end}",
            lambda reading: count_and_sum(reading, reading.load.routing_variance),
        ),
    ]


def _histograms(load: ExpertLoad) -> Iterator[float]:
    """By modality: how many tokens used at most as many experts as each bound says; tokens, used experts."""
    for modality in range(len(MODALITIES)):
        by_experts = Counter[int]()
        for of_layer in load.tokens_by_experts:
            by_experts.update(dict(enumerate(of_layer[modality], 1)))
        for bound in EXPERTS_PER_TOKEN:
            yield sum(tokens for number, tokens in by_experts.items() if number <= bound)
        yield by_experts.total()
        yield sum(number * tokens for number, tokens in by_experts.items())


def _variations(used_ME: Counts) -> list[float]:
    """The variation of each of LOADS."""
    return [balance.variation(load_E) for load_E in (*used_ME, used_ME.sum(axis=0))]


def _sums(by_layer: Iterable[Iterable[float]], width: int = len(MODALITIES)) -> list[float]:
    """Each column's sum over the layers, without layers that don't know it; NaN where none does."""
    return [_over(column, sum) for column in _columns(by_layer, width)]


def _means(by_layer: Iterable[Iterable[float]], width: int = 1) -> list[float]:
    """Each column's mean over the layers that know it; NaN where none does."""
    return [_over(column, np.mean) for column in _columns(by_layer, width)]


def _columns(by_layer: Iterable[Iterable[float]], width: int) -> list[tuple[float, ...]]:
    return [*zip(*by_layer, strict=True)] or [()] * width


def _over(values: Iterable[float], reduce: Callable[[list[float]], float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(reduce(known)) if known else math.nan
