"""vLLM's options that prismoe sets, for the server and for offline use."""

from collections.abc import Mapping
from typing import Any

from vllm.config import VllmConfig

from prismoe.model_plugins.routing import NATIVE
from prismoe.model_plugins.routing.any_gate import OperatorPolicies
from prismoe.model_plugins.worker.settings import SETTINGS_KEY, EngineSettings

ROUTED_WORKER = "prismoe.model_plugins.worker.routed_worker.RoutedWorker"


def engine_options(
    routing: Mapping[str, Any] | None = None, shadow: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Keyword arguments of vLLM's LLM or EngineArgs under which every policy is right.

    `routing` overrides what the checkpoint says; None leaves it in force. `shadow` is counted while `native`
    routes. Both are named in any case: so a graph that vLLM compiled and kept without prismoe is not taken
    for one that writes its routing down. Where a policy needs a scheduler of its own, the check at the start
    chooses it (`engine_checks`).
    """
    return {
        "worker_cls": ROUTED_WORKER,
        "additional_config": additional_config(routing, shadow),
    }


def additional_config(
    routing: Mapping[str, Any] | None, shadow: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What of prismoe's settings the workers read, and vLLM's compile cache tells graphs apart by."""
    settings = {"routing": routing, "shadow": shadow}
    return {SETTINGS_KEY: {name: value and dict(value) for name, value in settings.items()}}


def operator_settings(vllm_config: VllmConfig) -> EngineSettings:
    """What the operator gave; `routing` is None where the checkpoint's is in force."""
    settings: dict[str, Any] = vllm_config.additional_config  # type: ignore[assignment]
    return EngineSettings.of(settings)


def operator_policies(vllm_config: VllmConfig) -> OperatorPolicies | None:
    """What the operator said of a model that vLLM has built; None where it routes by `native`.

    Raises ValueError with a sentence where a policy can't hold in such a model.
    """
    routing = operator_settings(vllm_config).routing
    return None if routing is None or routing == NATIVE else OperatorPolicies.of(routing)


def shadow_policies(vllm_config: VllmConfig) -> OperatorPolicies | None:
    """What the operator would have counted beside `native`, if anything. Raises ValueError as well."""
    shadow = operator_settings(vllm_config).shadow
    return None if shadow is None else OperatorPolicies.of(shadow, "--shadow")


def use_routed_worker(vllm_config: VllmConfig) -> None:
    """Have vLLM run the worker that counts, before it chooses one of its own.

    Raises ValueError where the user chose another.
    """
    parallel = vllm_config.parallel_config
    if parallel.worker_cls not in ("auto", ROUTED_WORKER):
        raise ValueError(
            f"prismoe counts in a worker of its own: leave --worker-cls {parallel.worker_cls} out."
        )
    parallel.worker_cls = ROUTED_WORKER
    given: dict[str, Any] = vllm_config.additional_config  # type: ignore[assignment]
    settings = operator_settings(vllm_config)
    vllm_config.additional_config = {**given, **additional_config(settings.routing, settings.shadow)}
