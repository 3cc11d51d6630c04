"""Expert load as Prometheus counters."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from prismoe.server.expert_load import MODALITIES, ExpertLoadReader

VLLM_TOKENS = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total")


def vllm_tokens(registry: CollectorRegistry) -> float | None:
    """How many tokens vLLM's own counters have seen so far; None where they are switched off."""
    samples = [
        sample.value
        for metric in registry.restricted_registry(VLLM_TOKENS).collect()
        for sample in metric.samples
        if sample.name in VLLM_TOKENS
    ]
    return sum(samples) if samples else None


class ExpertLoadCollector(Collector):
    """Exports the reader's latest load, with the names that dashboards rely on."""

    def __init__(self, reader: ExpertLoadReader, model_name: str) -> None:
        self._reader = reader
        self._model_name = model_name

    def collect(self) -> Iterator[CounterMetricFamily]:
        """The counters of the latest load; none before the first."""
        load = self._reader.latest
        if load is None:
            return
        expert_tokens = CounterMetricFamily(
            "prismoe_expert_tokens",
            "Tokens that used an expert, by decoder layer, modality and expert.",
            labels=["layer", "modality", "expert", "model_name"],
        )
        tail_tokens = CounterMetricFamily(
            "prismoe_vision_tail_tokens",
            "Vision tokens that were tail tokens, by decoder layer.",
            labels=["layer", "model_name"],
        )
        tokens = CounterMetricFamily(
            "prismoe_tokens",
            "Tokens computed, by modality, each counted once.",
            labels=["modality", "model_name"],
        )
        for layer, by_modality, tail in zip(load.layers, load.expert_tokens, load.tail_tokens, strict=True):
            for modality, counts in zip(MODALITIES, by_modality, strict=True):
                for expert, count in enumerate(counts):
                    expert_tokens.add_metric([str(layer), modality, str(expert), self._model_name], count)
            tail_tokens.add_metric([str(layer), self._model_name], tail)
        # Every MoE layer sees every token: the first one's count is each token once.
        for modality, count in zip(MODALITIES, load.tokens[0] if load.tokens else (), strict=False):
            tokens.add_metric([modality, self._model_name], count)
        yield from (expert_tokens, tokens, tail_tokens)

    def describe(self) -> list[CounterMetricFamily]:
        """Nothing: registering must not collect."""
        return []
