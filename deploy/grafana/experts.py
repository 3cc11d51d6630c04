"""The dashboard *Experts*: how the tokens of each modality are spread over the experts."""

from first_screen import first_screen
from grafana_foundation_sdk.builders.dashboard import Dashboard, Row
from panels import (
    HALF,
    MODALITY,
    MODEL,
    RATE,
    VISION,
    buckets_over_time,
    by_expert_over_time,
    by_layer_and_expert,
    dashboard,
    layer_variable,
    modality_variable,
    over_time,
)

OF_LAYER = 'layer=~"$layer"'
LAYER = f"{MODEL}, {OF_LAYER}"


def experts() -> Dashboard:
    """Build the dashboard. Its last section needs `--expert-metrics full`."""
    board = dashboard("Experts", "Expert load by modality. The metrics are explained in docs/metrics.md.")
    board.with_variable(layer_variable()).with_variable(modality_variable())

    for question, panels in first_screen().items():
        board.with_row(Row(question))
        for panel in panels:
            board.with_panel(panel)

    board.with_row(Row("Over time, all layers"))
    board.with_panel(
        over_time(
            "Computed tokens",
            "Tokens that the model computed, by modality. A token counts once.",
            {"{{modality}}": f"sum by (modality) (rate(prismoe_tokens_total{{{MODEL}, {MODALITY}}}{RATE}))"},
            "cps",
        )
    )
    board.with_panel(
        over_time(
            "Experts per token",
            "Mean over the tokens and layers.",
            {
                "{{modality}}": _ratio(
                    f"prismoe_used_experts_total{{{MODEL}, {MODALITY}}}",
                    f"prismoe_routed_tokens_total{{{MODEL}, {MODALITY}}}",
                    "modality",
                )
            },
        )
    )
    board.with_panel(
        buckets_over_time(
            "How many experts a token uses",
            "Tokens per second of the modalities chosen above. A token counts once in each layer.",
            f"sum by (le) (rate(prismoe_token_experts_bucket{{{MODEL}, {MODALITY}}}{RATE}))",
        )
    )
    board.with_panel(
        over_time(
            "Routing entropy",
            "In nats, mean over the tokens and layers. At 0 the router is certain.",
            {"{{modality}}": _mean("prismoe_routing_entropy_nats", MODALITY, "modality")},
        )
    )
    board.with_panel(
        over_time(
            "Routing-probability variance (RPV)",
            "Mean over the tokens and layers. At 0 the router prefers no expert.",
            {"{{modality}}": _mean("prismoe_routing_probability_variance", MODALITY, "modality")},
        )
    )
    board.with_panel(
        over_time(
            "Near ties",
            "The share of tokens whose last used expert scored less than 0.01 above the best unused one.",
            {"{{modality}}": _mean("prismoe_near_ties", MODALITY, "modality")},
            "percentunit",
        )
    )
    board.with_panel(
        over_time(
            "Tail share",
            "The share of vision tokens that were tail tokens, mean over the layers.",
            {
                "tail": f"sum(rate(prismoe_vision_tail_tokens_total{{{MODEL}}}{RATE})) / "
                f"sum(rate(prismoe_routed_tokens_total{{{MODEL}, {VISION}}}{RATE}))"
            },
            "percentunit",
        )
    )
    board.with_panel(
        over_time(
            "Imbalance (CV)",
            "The coefficient of variation of the experts' load, mean over the layers: 0 is even.",
            {
                "{{modality}}": f"avg by (modality) (prismoe_expert_load_variation{{{MODEL}, {MODALITY}}})",
                "all tokens": f"avg(prismoe_overall_load_variation{{{MODEL}}})",
            },
        )
    )
    board.with_panel(
        over_time(
            "Modality Equity Index",
            "The share of the experts that both text and vision use, mean over the layers.",
            {"MEI": f"avg(prismoe_modality_equity_index{{{MODEL}}})"},
            "percentunit",
        )
    )
    board.with_panel(
        over_time(
            "Text among the most loaded experts",
            "The text share of the load of the most loaded quarter of the experts, and of all experts.",
            {
                "most loaded quarter": f"avg(prismoe_most_loaded_text_ratio{{{MODEL}}})",
                "all experts": f'sum(rate(prismoe_used_experts_total{{{MODEL}, modality="text"}}{RATE})) / '
                f"sum(rate(prismoe_used_experts_total{{{MODEL}}}{RATE}))",
            },
            "percentunit",
        )
    )
    board.with_panel(
        over_time(
            "Idle experts",
            "(Layer, expert) pairs that no token of the modality used in the last minutes.",
            {"{{modality}}": f"max by (modality) (prismoe_idle_experts{{{MODEL}, {MODALITY}}})"},
        )
    )

    board.with_row(Row("By layer and expert (needs --expert-metrics full)"))
    for what, matcher in (("text", 'modality="text"'), ("vision", VISION)):
        board.with_panel(
            by_layer_and_expert(
                f"Where {what} goes",
                f"Each row is a layer, and shows how its {what} tokens are spread over the experts.",
                _share_of_layer(matcher),
            )
        )
    board.with_panel(
        by_layer_and_expert(
            "Text share of each expert",
            "The share of an expert's tokens that were text.",
            f"avg by (layer, expert) (prismoe_expert_text_ratio{{{LAYER}}})",
        )
    )
    board.with_panel(
        by_expert_over_time(
            "Load of each expert over time",
            "Tokens per second, of the modalities and layers chosen above.",
            f"sum by (expert) (rate(prismoe_expert_tokens_total{{{LAYER}, {MODALITY}}}{RATE}))",
        )
    )
    board.with_panel(
        over_time(
            "Experts per token by layer",
            "Mean over the tokens of the modalities chosen above.",
            {
                "layer {{layer}}": "sum by (layer) "
                f"(rate(prismoe_expert_tokens_total{{{LAYER}, {MODALITY}}}{RATE})) / "
                f"scalar(sum(rate(prismoe_tokens_total{{{MODEL}, {MODALITY}}}{RATE})))"
            },
        )
    )
    board.with_panel(
        over_time(
            "Tail share by layer",
            "The share of vision tokens that were tail tokens.",
            {
                "layer {{layer}}": "sum by (layer) "
                f"(rate(prismoe_layer_vision_tail_tokens_total{{{LAYER}}}{RATE}))"
                f" / scalar(sum(rate(prismoe_tokens_total{{{MODEL}, {VISION}}}{RATE})))"
            },
            "percentunit",
        )
    )
    for title, description, metric in (
        ("Routing entropy by layer", "In nats, mean over the tokens.", "routing_entropy_nats"),
        ("RPV by layer", "Mean over the tokens.", "routing_probability_variance"),
    ):
        board.with_panel(
            over_time(
                title,
                f"{description} For the modalities chosen above.",
                {"layer {{layer}}": _mean(f"prismoe_layer_{metric}", f"{OF_LAYER}, {MODALITY}", "layer")},
            )
        )
    board.with_panel(
        over_time(
            "Near ties by layer",
            "The share of near ties among the tokens of the modalities chosen above.",
            {"layer {{layer}}": _mean("prismoe_layer_near_ties", f"{OF_LAYER}, {MODALITY}", "layer")},
            "percentunit",
        )
    )
    board.with_panel(
        over_time(
            "Imbalance (CV) by layer",
            "The coefficient of variation of the experts' load.",
            {"layer {{layer}}": f"avg by (layer) (prismoe_layer_overall_load_variation{{{LAYER}}})"},
        )
    )
    board.with_panel(
        over_time(
            "Modality Equity Index by layer",
            "The share of the layer's experts that both text and vision use.",
            {"layer {{layer}}": f"avg by (layer) (prismoe_layer_modality_equity_index{{{LAYER}}})"},
            "percentunit",
            HALF,
        )
    )
    board.with_panel(
        over_time(
            "Text among the most loaded experts by layer",
            "The text share of the load of the most loaded quarter of the layer's experts.",
            {"layer {{layer}}": f"avg by (layer) (prismoe_layer_most_loaded_text_ratio{{{LAYER}}})"},
            "percentunit",
            HALF,
        )
    )
    return board


def _ratio(part: str, whole: str, by: str) -> str:
    return f"sum by ({by}) (rate({part}{RATE})) / sum by ({by}) (rate({whole}{RATE}))"


def _mean(summary: str, labels: str, by: str) -> str:
    selected = f"{{{MODEL}, {labels}}}"
    return _ratio(f"{summary}_sum{selected}", f"{summary}_count{selected}", by)


def _share_of_layer(modality: str) -> str:
    used = f"prismoe_expert_tokens_total{{{LAYER}, {modality}}}[$__range]"
    return (
        f"sum by (layer, expert) (increase({used})) "
        f"/ on (layer) group_left () sum by (layer) (increase({used}))"
    )
