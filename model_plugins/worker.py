"""What the server and the tools ask of a worker process over vLLM's RPC."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from prismoe.model_plugins.inspection import Inspection


class RoutingWorkerExtension:
    """Mixed into vLLM's worker (`worker_extension_cls`). Ranks hold the same counts: read rank 0's."""

    _prismoe_inspection: Inspection | None = None

    def prismoe_routing(self) -> Mapping[str, Any]:
        """What is in force, per layer (`ModalityRouting.describe`)."""
        description: Mapping[str, Any] = self._prismoe_model().routing.describe()
        return description

    def prismoe_expert_load(self) -> Mapping[str, Any]:
        """The load counted so far (`ModalityRouting.load`)."""
        load: Mapping[str, Any] = self._prismoe_model().routing.load()
        return load

    def prismoe_reset_expert_load(self) -> None:
        """Count from zero (`ModalityRouting.reset_load`)."""
        self._prismoe_model().routing.reset_load()

    def prismoe_unused_tensors(self) -> Sequence[str]:
        """The checkpoint's tensors that the model has no use for, by name."""
        unused: Sequence[str] = self._prismoe_model().unused_tensors
        return unused

    def prismoe_start_recording(self) -> None:
        """Keep what is computed for each token from now on (`Recorder`)."""
        from prismoe.model_plugins.recorder import Recorder

        model = self._prismoe_model()
        self._prismoe_recorder = Recorder(model, model.routing)

    @torch.inference_mode()
    def prismoe_save_recording(self, file: str) -> None:
        """Write what was kept since the last call to an .npz file on this machine; rank 0 writes."""
        recording = self._prismoe_recorder.take()
        if self.rank == 0:  # type: ignore[attr-defined]
            np.savez(file, allow_pickle=False, **recording)

    def prismoe_inspectable(self) -> Mapping[str, Any]:
        """How an image's tokens lie on it, and how many experts a request may ask for."""
        model = self._prismoe_model()
        return {
            "grid": model.patch_grid.model_dump(),
            "request_experts": model.routing.in_force.most_request_experts,
            "moe_layers": len(model.routing.routers),
        }

    def prismoe_start_inspection(self, request: str, most_tokens: int) -> None:
        """Record what the tokens of a request are routed to (`Inspection`); an earlier one ends."""
        if self._prismoe_inspection is not None:
            self._prismoe_inspection.end()
        runner, routing = self.model_runner, self._prismoe_model().routing  # type: ignore[attr-defined]
        self._prismoe_inspection = Inspection(runner, routing, request, most_tokens)

    def prismoe_end_inspection(self, request: str) -> None:
        """Record this request no longer, and forget what was recorded."""
        if self._prismoe_inspection is not None and self._prismoe_inspection.request == request:
            self._prismoe_inspection.end()
            self._prismoe_inspection = None

    def prismoe_inspected_rows(self, with_logits: bool) -> Mapping[str, Any] | None:
        """What was recorded so far (`Inspection.rows`), from rank 0."""
        if self._prismoe_inspection is None or self.rank != 0:  # type: ignore[attr-defined]
            return None
        return self._prismoe_inspection.rows(with_logits)

    def _prismoe_model(self) -> Any:
        return self.model_runner.get_model()  # type: ignore[attr-defined]
