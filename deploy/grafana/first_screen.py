"""Builds the first screen of the dashboard *Experts*: three questions, and panels that answer them."""

from grafana_foundation_sdk.builders.stat import Panel as StatPanel
from grafana_foundation_sdk.models.common import BigValueTextMode
from panels import MODALITY, MODEL, RATE, now


def first_screen() -> dict[str, list[StatPanel]]:
    """The first three questions, each with panels that answer it from the last minutes."""
    alerts = "Prismoe(Expert|Modality|TailShare|RoutingEntropy).*"
    used, tokens, routed = (
        f"prismoe_{name}_total{{{MODEL}, {MODALITY}}}" for name in ("used_experts", "tokens", "routed_tokens")
    )
    return {
        "Are my experts healthy?": [
            now(
                "Expert alerts",
                "The number of alerts that fire now. docs/runbooks.md explains what to do about each.",
                f'count(ALERTS{{job=~"$job", alertname=~"{alerts}", alertstate="firing"}}) or vector(0)',
                "firing",
                bad_from=(1, 1),
            ),
            now(
                "Idle experts now",
                "(Layer, expert) pairs that no token of the modality used in the last minutes. Some policies "
                "keep experts for one modality.",
                f"max by (modality) (prismoe_idle_experts{{{MODEL}, {MODALITY}}})",
                "{{modality}}",
            ),
            now(
                "Imbalance now (CV)",
                "The coefficient of variation of the experts' load, mean over the layers. 0 is even; above "
                "1, an alert fires.",
                f"max(prismoe_overall_load_variation{{{MODEL}}})",
                "all tokens",
                bad_from=(0.7, 1),
            ),
            now(
                "Routing in force",
                "The policy, and the source of the setting.",
                f"count by (policy, source) (prismoe_routing_info{{{MODEL}}})",
                "{{policy}} ({{source}})",
                text=BigValueTextMode.NAME,
            ),
        ],
        "Which modality starves?": [
            now(
                "Experts per token now",
                "Mean over the tokens and layers.",
                f"sum by (modality) (rate({used}{RATE})) / sum by (modality) (rate({routed}{RATE}))",
                "{{modality}}",
            ),
            now(
                "Experts of both modalities",
                "The Modality Equity Index: the share of the experts that both text and vision use.",
                f"avg(prismoe_modality_equity_index{{{MODEL}}})",
                "MEI",
                "percentunit",
            ),
            now(
                "Text in the busiest experts",
                "The text share of the load of the most loaded quarter of the experts.",
                f"avg(prismoe_most_loaded_text_ratio{{{MODEL}}})",
                "most loaded quarter",
                "percentunit",
            ),
            now(
                "Imbalance within a modality now (CV)",
                "The same for one modality's tokens. The larger it is, the fewer experts carry the load.",
                f"max by (modality) (prismoe_expert_load_variation{{{MODEL}, {MODALITY}}})",
                "{{modality}}",
            ),
        ],
        "What does it cost?": [
            now(
                "Experts per token, all",
                "The cost of a token grows with the experts that it uses. Mean over all tokens and layers.",
                f"sum(rate({used}{RATE})) / sum(rate({routed}{RATE}))",
                "experts",
            ),
            now(
                "Share of the experts' work",
                "The share of all expert uses by modality.",
                f"sum by (modality) (rate({used}{RATE})) / scalar(sum(rate({used}{RATE})))",
                "{{modality}}",
                "percentunit",
            ),
            now(
                "Tokens a second",
                "Tokens that the model computed. A token counts once.",
                f"sum by (modality) (rate({tokens}{RATE}))",
                "{{modality}}",
            ),
            now(
                "Tokens of a request",
                "Computed tokens of text and media for each finished request.",
                f"sum(rate({tokens}{RATE})) / sum(rate(vllm:request_success_total{{{MODEL}}}{RATE}))",
                "computed",
            ),
        ],
    }
