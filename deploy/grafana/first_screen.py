"""The first screen of the dashboard *Experts*: three questions, and the answers of the last minutes."""

from grafana_foundation_sdk.builders.stat import Panel as StatPanel
from grafana_foundation_sdk.models.common import BigValueTextMode
from panels import MODALITY, MODEL, RATE, now


def first_screen() -> dict[str, list[StatPanel]]:
    """What is asked first, and the answers of the last minutes."""
    alerts = "Prismoe(Expert|Modality|TailShare|RoutingEntropy).*"
    used, tokens, routed = (
        f"prismoe_{name}_total{{{MODEL}, {MODALITY}}}" for name in ("used_experts", "tokens", "routed_tokens")
    )
    return {
        "Are my experts healthy?": [
            now(
                "Alerts of the experts",
                "How many fire now: docs/runbooks.md says what to do about each.",
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
                "Of the experts' load, mean over the layers: 0 is even; above 1, an alert fires.",
                f"max(prismoe_overall_load_variation{{{MODEL}}})",
                "all tokens",
                bad_from=(0.7, 1),
            ),
            now(
                "Routing in force",
                "The policy, and where it was set.",
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
                "Experts that both use",
                "The Modality Equity Index: the share of the experts that text and vision both use.",
                f"avg(prismoe_modality_equity_index{{{MODEL}}})",
                "MEI",
                "percentunit",
            ),
            now(
                "Text where most goes",
                "The text share of what the most loaded quarter of the experts got.",
                f"avg(prismoe_most_loaded_text_ratio{{{MODEL}}})",
                "most loaded quarter",
                "percentunit",
            ),
            now(
                "Imbalance within a modality now (CV)",
                "Of the experts' load by one modality's tokens: the larger, the fewer experts carry it.",
                f"max by (modality) (prismoe_expert_load_variation{{{MODEL}, {MODALITY}}})",
                "{{modality}}",
            ),
        ],
        "What does it cost?": [
            now(
                "Experts per token, all",
                "A token pays for the experts it uses: the mean over all tokens and layers.",
                f"sum(rate({used}{RATE})) / sum(rate({routed}{RATE}))",
                "experts",
            ),
            now(
                "Share of the experts' work",
                "Which modality's tokens used the experts.",
                f"sum by (modality) (rate({used}{RATE})) / scalar(sum(rate({used}{RATE})))",
                "{{modality}}",
                "percentunit",
            ),
            now(
                "Tokens a second",
                "Computed, each once.",
                f"sum by (modality) (rate({tokens}{RATE}))",
                "{{modality}}",
            ),
            now(
                "Tokens of a request",
                "Computed tokens, of text and media, for each finished request.",
                f"sum(rate({tokens}{RATE})) / sum(rate(vllm:request_success_total{{{MODEL}}}{RATE}))",
                "computed",
            ),
        ],
    }
