"""The app's state for the routes and metrics of routing and expert load."""

from typing import Any

from prometheus_client import CollectorRegistry
from vllm.engine.protocol import EngineClient

from prismoe.model_plugins.worker.settings import MetricsSettings
from prismoe.server.app.engine import RoutedEngines
from prismoe.server.inspector.inspector import Inspector, find_inspectable
from prismoe.server.metrics import routes
from prismoe.server.metrics.load_reader import ExpertLoadReader, logger
from prismoe.server.metrics.page import ExpertMetrics, vllm_tokens


async def init_routing_state(
    state: Any, engine: EngineClient, registry: CollectorRegistry, settings: MetricsSettings
) -> ExpertMetrics:
    """Ask the engines how they route, log their answer, and return the metrics.

    This sets `expert_load`, `routing` and `inspector` of `state`. Errors of the engines are raised.
    """
    engines = RoutedEngines(engine)
    state.routing = await routes.routing_in_force(engines)
    state.expert_load = ExpertLoadReader(engines, lambda: vllm_tokens(registry))
    await state.expert_load.read()
    inspectable = await find_inspectable(engines, engine.vllm_config, state.routing.not_supported)
    state.inspector = Inspector(engines, state.openai_serving_chat, inspectable)
    model_name = str(engine.model_config.served_model_name)
    metrics = ExpertMetrics(state.expert_load, state.routing, model_name, settings.expert_metrics)
    for sentence in state.routing.sentences():
        logger.info("%s", sentence)
    logger.info("/metrics exports %d series of prismoe's (%s).", metrics.series, settings.expert_metrics)
    return metrics
