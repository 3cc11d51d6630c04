"""The metrics by MoE layer and expert: `--expert-metrics full`. docs/metrics.md explains them."""

from functools import partial
from itertools import chain

from prismoe.kernels import balance
from prismoe.server.metrics.expert_load import ExpertLoad
from prismoe.server.metrics.metric import WINDOW, Metric, confidence_metrics, metric
from prismoe.server.metrics.routes import ServedRouting


def layer_metrics(load: ExpertLoad, routing: ServedRouting, model_name: str) -> list[Metric]:
    """Return the metrics by MoE layer and expert, for a model with the layers and experts of `load`."""
    entry = partial(metric, model_name)
    layers = [str(layer) for layer in load.layers]
    by_layer = [[layer] for layer in layers]
    by_layer_and_modality = [[layer, modality] for layer in layers for modality in load.modalities]
    experts = [[str(expert) for expert in range(len(rows[0]))] for rows in load.expert_tokens]
    return [
        entry(
            "prismoe_layer_routing",
            "info",
            "The routing policy of a layer.",
            lambda reading: [1] * len(routing.layers),
            labels=["layer", "policy"],
            label_values=[[str(layer.layer), str(layer.policy["policy"])] for layer in routing.layers],
        ),
        entry(
            "prismoe_expert_tokens",
            "counter",
            "Tokens that used an expert.",
            lambda reading: [count for rows in reading.load.expert_tokens for row in rows for count in row],
            unit="tokens",
            labels=["layer", "modality", "expert"],
            label_values=[
                [layer, modality, expert]
                for layer, of_layer in zip(layers, experts, strict=True)
                for modality in load.modalities
                for expert in of_layer
            ],
        ),
        entry(
            "prismoe_layer_vision_tail_tokens",
            "counter",
            "Vision tokens that were tail tokens in a layer.",
            lambda reading: reading.load.tail_tokens,
            unit="tokens",
            labels=["layer"],
            label_values=by_layer,
        ),
        *confidence_metrics(
            partial(entry, labels=["layer", "modality"], label_values=by_layer_and_modality),
            "prismoe_layer",
            ", by layer.",
            chain.from_iterable,
        ),
        entry(
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
        entry(
            "prismoe_layer_expert_load_variation",
            "gauge",
            f"Coefficient of variation of a layer's experts' load by a modality {WINDOW}.",
            lambda reading: [
                balance.variation(used_E) for used_ME in reading.window.used for used_E in used_ME
            ],
            labels=["layer", "modality"],
            label_values=by_layer_and_modality,
        ),
        entry(
            "prismoe_layer_overall_load_variation",
            "gauge",
            f"Coefficient of variation of a layer's experts' load by all tokens {WINDOW}.",
            lambda reading: [balance.variation(used_ME.sum(axis=0)) for used_ME in reading.window.used],
            labels=["layer"],
            label_values=by_layer,
        ),
        entry(
            "prismoe_layer_modality_equity_index",
            "gauge",
            f"Share of a layer's experts that text and vision (and audio) all used {WINDOW}.",
            lambda reading: [
                balance.modality_equity(used_ME, load.modalities) for used_ME in reading.window.used
            ],
            labels=["layer"],
            label_values=by_layer,
        ),
        entry(
            "prismoe_layer_most_loaded_text_ratio",
            "gauge",
            f"Text share of the tokens that used the most loaded quarter of a layer's experts {WINDOW}.",
            lambda reading: map(balance.text_among_most_loaded, reading.window.used),
            unit="ratio",
            labels=["layer"],
            label_values=by_layer,
        ),
    ]
