"""The /metrics page: prismoe's metrics and vLLM's own."""

from dataclasses import dataclass

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import Response

from prismoe.model_plugins.worker.settings import MetricsLevel
from prismoe.server.metrics.by_layer import layer_metrics
from prismoe.server.metrics.load_reader import ExpertLoadReader
from prismoe.server.metrics.metric import Reading
from prismoe.server.metrics.routes import ServedRouting
from prismoe.server.metrics.summary import summary_metrics

# Without `escaping`, prometheus_client turns "vllm:" into "vllm_" in this format.
OPENMETRICS = "application/openmetrics-text; version=1.0.0; escaping=allow-utf-8"
VLLM_TOKENS = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total")


def vllm_tokens(registry: CollectorRegistry) -> float | None:
    """Return the number of tokens in vLLM's own counters; None if they are switched off."""
    samples = [
        sample.value
        for metric in registry.restricted_registry(VLLM_TOKENS).collect()
        for sample in metric.samples
        if sample.name in VLLM_TOKENS
    ]
    return sum(samples) if samples else None


class ExpertMetrics:
    """The metrics of a reader's latest reading, as text for Prometheus.

    At level `summary` the number of series does not depend on the model's layers and experts. Level `full`
    adds series for each layer and expert. If prismoe can't see the model's MoE layers, there are no series.
    The reader must have read the load once.
    """

    def __init__(
        self, reader: ExpertLoadReader, routing: ServedRouting, model_name: str, level: MetricsLevel
    ) -> None:
        self._reader = reader
        self._metrics = summary_metrics(routing, model_name) if routing.layers else []
        if level == "full" and routing.layers:
            self._metrics += layer_metrics(self._reading().load, routing, model_name)

    @property
    def series(self) -> int:
        """The number of exported series after tokens of all modalities have been counted."""
        return sum(len(metric.family.series) for metric in self._metrics)

    def text(self, openmetrics: bool) -> str:
        """Return all metrics of the last reading, in OpenMetrics without its end mark or the older format."""
        reading = self._reading()
        lines = [
            line
            for metric in self._metrics
            for line in metric.family.lines(metric.values(reading), openmetrics)
        ]
        return "".join(f"{line}\n" for line in lines)

    def _reading(self) -> Reading:
        assert self._reader.latest is not None
        return Reading(self._reader.latest, self._reader.window.counted(), self._reader.failures)


@dataclass
class MetricsPage:
    """The page /metrics: prismoe's metrics, if they exist already, and those of the registry."""

    registry: CollectorRegistry
    experts: ExpertMetrics | None = None

    def __call__(self, request: Request) -> Response:
        """Return the page in the format that the scraper accepts."""
        openmetrics = "application/openmetrics-text" in request.headers.get("accept", "")
        encode, content_type = choose_encoder(OPENMETRICS if openmetrics else "text/plain")
        text = "" if self.experts is None else self.experts.text(openmetrics)
        return Response(text.encode() + encode(self.registry), headers={"Content-Type": content_type})

    def add_to(self, app: FastAPI) -> None:
        """Add the page to an app."""
        app.add_api_route("/metrics", self, response_model=None, include_in_schema=False)
