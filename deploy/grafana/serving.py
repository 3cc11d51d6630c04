"""The dashboard *Serving*: latency, throughput, queue, cache and errors."""

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row
from panels import MODEL, RATE, dashboard, over_time


def serving() -> Dashboard:
    """Build the dashboard from metrics that every server exports."""
    board = dashboard("Serving", "Latency, throughput, queue, cache and errors of prismoe's servers.")

    board.with_row(Row("Latency"))
    board.with_panel(
        over_time(
            "Time to first token",
            "From the request's arrival to its first token, image processing included.",
            _quantiles("vllm:time_to_first_token_seconds"),
            "s",
        )
    )
    board.with_panel(
        over_time(
            "Between tokens",
            "The time between two tokens of an answer.",
            _quantiles("vllm:inter_token_latency_seconds"),
            "s",
        )
    )
    board.with_panel(
        over_time(
            "Whole request",
            "From the request's arrival to its last token.",
            _quantiles("vllm:e2e_request_latency_seconds"),
            "s",
        )
    )

    board.with_row(Row("Throughput"))
    board.with_panel(
        over_time(
            "Tokens",
            "Tokens of prompts, including cached ones, and of answers.",
            {
                "prompts": f"sum(rate(vllm:prompt_tokens_total{{{MODEL}}}{RATE}))",
                "answers": f"sum(rate(vllm:generation_tokens_total{{{MODEL}}}{RATE}))",
            },
            "cps",
        )
    )
    board.with_panel(
        over_time(
            "Computed tokens by modality",
            "Tokens that the model computed, without those from the prefix cache.",
            {"{{modality}}": f"sum by (modality) (rate(prismoe_tokens_total{{{MODEL}}}{RATE}))"},
            "cps",
        )
    )
    board.with_panel(
        over_time(
            "Finished requests",
            "Finished requests by the reason why the answer ended.",
            {
                "{{finished_reason}}": "sum by (finished_reason) "
                f"(rate(vllm:request_success_total{{{MODEL}}}{RATE}))"
            },
            "reqps",
        )
    )

    board.with_row(Row("Queue"))
    board.with_panel(
        over_time(
            "Requests",
            "Requests in the running batch, and requests that wait.",
            {
                "running": f"sum(vllm:num_requests_running{{{MODEL}}})",
                "waiting": f"sum(vllm:num_requests_waiting{{{MODEL}}})",
            },
        )
    )
    board.with_panel(
        over_time(
            "Time in the queue",
            "From a request's arrival at the engine to its first step.",
            _quantiles("vllm:request_queue_time_seconds"),
            "s",
        )
    )
    board.with_panel(
        over_time(
            "Preemptions",
            "Requests that were stopped because the cache was full. They are computed again.",
            {"{{instance}}": f"sum by (instance) (rate(vllm:num_preemptions_total{{{MODEL}}}{RATE}))"},
            "ops",
        )
    )

    board.with_row(Row("Cache"))
    board.with_panel(
        over_time(
            "KV cache in use",
            "At 100% requests are preempted.",
            {"{{instance}}": f"max by (instance) (vllm:kv_cache_usage_perc{{{MODEL}}})"},
            "percentunit",
        )
    )
    board.with_panel(
        over_time(
            "Prefix cache",
            "The share of the prompts' tokens that were in the cache.",
            {"hits": _hits("vllm:prefix_cache")},
            "percentunit",
        )
    )
    board.with_panel(
        over_time(
            "Image cache",
            "The share of the images that were already processed.",
            {"hits": _hits("vllm:mm_cache")},
            "percentunit",
        )
    )

    board.with_row(Row("Errors"))
    board.with_panel(
        over_time(
            "Answers by status",
            "vLLM's answers: 4xx is an error of the client, 5xx of the server. Excludes refused requests.",
            {"{{status}}": f'sum by (status) (rate(http_requests_total{{job=~"$job"}}{RATE}))'},
            "reqps",
        )
    )
    board.with_panel(
        over_time(
            "Refused requests",
            "Requests that prismoe refused. Statuses by reason: key 401, role 403, body_time 408, "
            "body_size 413, busy, key_busy and memory 429, draining 503.",
            {"{{reason}}": f"sum by (reason) (rate(prismoe_refused_requests_total{{{MODEL}}}{RATE}))"},
            "reqps",
        )
    )
    board.with_panel(
        over_time(
            "Servers that answer",
            "Servers that answer, of those that Prometheus scrapes.",
            {"up": 'sum(up{job=~"$job"})', "all": 'count(up{job=~"$job"})'},
        )
    )
    return board


def _quantiles(histogram: str) -> dict[str, str]:
    """Queries for the median and the high percentiles of a histogram."""
    buckets = f"sum by (le) (rate({histogram}_bucket{{{MODEL}}}{RATE}))"
    return {f"p{share}": f"histogram_quantile(0.{share}, {buckets})" for share in (50, 95, 99)}


def _hits(cache: str) -> str:
    hits, queries = (f"sum(rate({cache}_{what}_total{{{MODEL}}}{RATE}))" for what in ("hits", "queries"))
    return f"{hits} / {queries}"
