"""Sets vLLM's options for prismoe, for the server and for offline use."""

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
    """Keyword arguments for vLLM's LLM or EngineArgs under which every policy works correctly.

    `routing` overrides the checkpoint's routing; None keeps it. `shadow` is counted while `native` routes.
    Both are always set: otherwise a cached graph that vLLM compiled without prismoe could be used, which does
    not record its routing. If a policy needs its own scheduler, the check at the start chooses it
    (`engine_checks`).
    """
    return {
        "worker_cls": ROUTED_WORKER,
        "additional_config": additional_config(routing, shadow),
    }


def additional_config(
    routing: Mapping[str, Any] | None, shadow: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The settings that workers read, and by which vLLM's compile cache distinguishes graphs."""
    settings = {"routing": routing, "shadow": shadow}
    return {SETTINGS_KEY: {name: value and dict(value) for name, value in settings.items()}}


def operator_settings(vllm_config: VllmConfig) -> EngineSettings:
    """The operator's settings; `routing` is None where the checkpoint's is in force."""
    settings: dict[str, Any] = vllm_config.additional_config  # type: ignore[assignment]
    return EngineSettings.of(settings)


def operator_policies(vllm_config: VllmConfig) -> OperatorPolicies | None:
    """The operator's policies for a model that vLLM has built; None where it routes by `native`.

    Raises ValueError for a policy that can't work in such a model.
    """
    routing = operator_settings(vllm_config).routing
    return None if routing is None or routing == NATIVE else OperatorPolicies.of(routing)


def shadow_policies(vllm_config: VllmConfig) -> OperatorPolicies | None:
    """The operator's shadow policies, if any. Raises ValueError for one that can't work."""
    shadow = operator_settings(vllm_config).shadow
    return None if shadow is None else OperatorPolicies.of(shadow, "--shadow")


def use_routed_worker(vllm_config: VllmConfig) -> None:
    """Make vLLM run the worker that counts, before it chooses one of its own.

    Raises ValueError where the user chose another.
    """
    parallel = vllm_config.parallel_config
    if parallel.worker_cls not in ("auto", ROUTED_WORKER):
        raise ValueError(f"prismoe counts in its own worker: leave --worker-cls {parallel.worker_cls} out.")
    parallel.worker_cls = ROUTED_WORKER
    given: dict[str, Any] = vllm_config.additional_config  # type: ignore[assignment]
    settings = operator_settings(vllm_config)
    vllm_config.additional_config = {**given, **additional_config(settings.routing, settings.shadow)}
