"""What the server asks of a worker process over vLLM's RPC."""

from collections.abc import Mapping
from typing import Any


class RoutingWorkerExtension:
    """Mixed into vLLM's worker (`worker_extension_cls`). Ranks hold the same counts: read rank 0's."""

    def prismoe_routing(self) -> Mapping[str, Any]:
        """What is in force, per layer (`ModalityRouting.describe`)."""
        description: Mapping[str, Any] = self.model_runner.get_model().routing.describe()  # type: ignore[attr-defined]
        return description

    def prismoe_expert_load(self) -> Mapping[str, Any]:
        """The load counted so far (`ModalityRouting.load`)."""
        load: Mapping[str, Any] = self.model_runner.get_model().routing.load()  # type: ignore[attr-defined]
        return load

    def prismoe_reset_expert_load(self) -> None:
        """Count from zero (`ModalityRouting.reset_load`)."""
        self.model_runner.get_model().routing.reset_load()  # type: ignore[attr-defined]
