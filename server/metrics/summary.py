"""The metrics whose number of series does not depend on the model's size. docs/metrics.md explains them."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import numpy as np

from prismoe.kernels import balance
from prismoe.server.metrics.expert_load import ExpertLoad
from prismoe.server.metrics.metric import WINDOW, Metric, Reading, confidence_metrics, metric
from prismoe.server.metrics.routes import ServedLayer, ServedRouting

EXPERTS_PER_TOKEN = (0, 1, 2, 3, 4, 6, 8, 12, 16, 32, 64, math.inf)
"""The histogram's bounds. They are the same for every model, so that the buckets of several can be added."""

Entry = Callable[..., Metric]


def summary_metrics(routing: ServedRouting, model_name: str) -> list[Metric]:
    """Return the metrics of the level `summary`, for one model."""
    entry = partial(metric, model_name)
    by_modality = partial(
        entry, labels=["modality"], label_values=[[modality] for modality in routing.modalities]
    )
    policies = sorted({str(layer.policy["policy"]) for layer in routing.layers})
    return [
        entry(
            "prismoe_routing",
            "info",
            "The routing policies of the layers, and the source of their settings.",
            lambda reading: [1] * len(policies),
            labels=["policy", "source"],
            label_values=[[policy, routing.source] for policy in policies],
        ),
        *_counts(entry, by_modality),
        *_shadow_counts(entry, by_modality, routing.shadow or ()),
        *_window_gauges(entry, by_modality, routing.modalities),
        entry(
            "prismoe_expert_load_reading_failures",
            "counter",
            "How often the expert load could not be read from the engine.",
            lambda reading: [reading.failures],
        ),
    ]


def _counts(entry: Entry, by_modality: Entry) -> list[Metric]:
    """Return the metrics of the counts since the start."""
    return [
        by_modality(
            "prismoe_tokens",
            "counter",
            "Tokens computed. Each token counts once.",
            # Every MoE layer sees every token.
            lambda reading: reading.load.tokens[0],
            unit="tokens",
        ),
        by_modality(
            "prismoe_routed_tokens",
            "counter",
            "Tokens routed. Each token counts once in every MoE layer.",
            lambda reading: _sums(reading.load.tokens),
            unit="tokens",
        ),
        by_modality(
            "prismoe_used_experts",
            "counter",
            "Experts that the routed tokens used.",
            lambda reading: _sums([map(sum, rows) for rows in reading.load.expert_tokens]),
            unit="experts",
        ),
        entry(
            "prismoe_vision_tail_tokens",
            "counter",
            "Vision tokens that were tail tokens. A token counts once in every MoE layer where it was one.",
            lambda reading: [sum(reading.load.tail_tokens)],
            unit="tokens",
        ),
        by_modality(
            "prismoe_token_experts",
            "histogram",
            "Experts that a token used. Each token counts once in every MoE layer.",
            lambda reading: _histograms(reading.load),
            unit="experts",
            bounds=EXPERTS_PER_TOKEN,
        ),
        *confidence_metrics(
            by_modality,
            "prismoe",
            ". Each token counts once in every MoE layer.",
            _sums,
        ),
    ]


def _shadow_counts(entry: Entry, by_modality: Entry, shadow: Sequence[ServedLayer]) -> list[Metric]:
    """Return the metrics of the shadow policy's choices for the same tokens; none without a shadow policy."""

    def load(reading: Reading) -> ExpertLoad:
        assert reading.load.shadow is not None
        return reading.load.shadow

    used = by_modality(
        "prismoe_shadow_used_experts",
        "counter",
        "Experts that the routed tokens would have used under the shadow policy.",
        lambda reading: _sums([map(sum, rows) for rows in load(reading).expert_tokens]),
        unit="experts",
    )
    tail = entry(
        "prismoe_shadow_vision_tail_tokens",
        "counter",
        "Vision tokens that are tail tokens under the shadow policy. A token counts once in every MoE layer "
        "where it is one.",
        lambda reading: [sum(load(reading).tail_tokens)],
        unit="tokens",
    )
    knows_tails = any("tail_experts" in layer.policy for layer in shadow)
    return [used, tail] if knows_tails else [used] if shadow else []


def _window_gauges(entry: Entry, by_modality: Entry, modalities: Sequence[str]) -> list[Metric]:
    """Return the metrics about how even the load of the window is."""
    return [
        by_modality(
            "prismoe_expert_load_variation",
            "gauge",
            f"Coefficient of variation of the experts' load by a modality {WINDOW}; mean over the layers.",
            lambda reading: _means(map(balance.variation, used_ME) for used_ME in reading.window.used),
        ),
        entry(
            "prismoe_overall_load_variation",
            "gauge",
            f"Coefficient of variation of the experts' load by all tokens {WINDOW}; mean over the layers.",
            lambda reading: _means(
                [balance.variation(used_ME.sum(axis=0))] for used_ME in reading.window.used
            ),
        ),
        entry(
            "prismoe_modality_equity_index",
            "gauge",
            f"Share of the experts that text and vision (and audio) all used {WINDOW}; mean over the layers.",
            lambda reading: _means(
                [balance.modality_equity(used_ME, modalities)] for used_ME in reading.window.used
            ),
        ),
        entry(
            "prismoe_most_loaded_text_ratio",
            "gauge",
            f"Text share of the tokens that used the most loaded quarter of the experts {WINDOW}; "
            "mean over the layers.",
            lambda reading: _means(
                [balance.text_among_most_loaded(used_ME)] for used_ME in reading.window.used
            ),
            unit="ratio",
        ),
        by_modality(
            "prismoe_idle_experts",
            "gauge",
            f"Experts that no token of the modality used {WINDOW}, over all MoE layers.",
            lambda reading: _sums(
                balance.idle_experts(used_ME, reading.window.tokens_M) for used_ME in reading.window.used
            ),
            unit="experts",
        ),
        by_modality(
            "prismoe_window_tokens",
            "gauge",
            f"Tokens computed {WINDOW}: the sample of the gauges of expert load.",
            lambda reading: reading.window.tokens_M.tolist(),
            unit="tokens",
        ),
    ]


def _histograms(load: ExpertLoad) -> Iterator[float]:
    """Yield for each modality the number of tokens up to each bound, of all tokens, and of used experts."""
    for modality in range(len(load.modalities)):
        by_experts = Counter[int]()
        for of_layer in load.tokens_by_experts:
            by_experts.update(dict(enumerate(of_layer[modality])))
        for bound in EXPERTS_PER_TOKEN:
            yield sum(tokens for number, tokens in by_experts.items() if number <= bound)
        yield by_experts.total()
        yield sum(number * tokens for number, tokens in by_experts.items())


def _sums(by_layer: Iterable[Iterable[float]]) -> list[float]:
    """Return each column's sum over the layers, without NaN; NaN if all its values are NaN."""
    return [_over(column, sum) for column in zip(*by_layer, strict=True)]


def _means(by_layer: Iterable[Iterable[float]]) -> list[float]:
    """Return each column's mean over the layers, without NaN; NaN if all its values are NaN."""
    return [_over(column, np.mean) for column in zip(*by_layer, strict=True)]


def _over(values: Iterable[float], reduce: Callable[[list[float]], float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(reduce(known)) if known else math.nan
