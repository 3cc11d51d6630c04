"""vLLM's options that prismoe sets, for the server and for offline use."""

from collections.abc import Mapping
from typing import Any

from vllm.config import VllmConfig

from prismoe.model_plugins.routing import ROUTING_KEY

ROUTED_WORKER = "prismoe.model_plugins.worker.routed_worker.RoutedWorker"


def engine_options(routing: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Keyword arguments of vLLM's LLM or EngineArgs under which every policy is right.

    `routing` overrides what the checkpoint says; None leaves it in force. It is named in any case: so a graph
    that vLLM compiled and kept without prismoe is not taken for one that writes its routing down. Where a
    policy needs a scheduler of its own, the check at the start chooses it (`engine_checks`).
    """
    return {
        "worker_cls": ROUTED_WORKER,
        "worker_extension_cls": "prismoe.model_plugins.worker.extension.RoutingWorkerExtension",
        "additional_config": {ROUTING_KEY: None if routing is None else dict(routing)},
    }


def operator_routing(vllm_config: VllmConfig) -> Mapping[str, Any] | None:
    """The routing settings that the operator gave, None where the checkpoint's are in force."""
    settings: dict[str, Any] = vllm_config.additional_config  # type: ignore[assignment]
    return settings.get(ROUTING_KEY)
