"""What the server and the tools ask of a worker process over vLLM's RPC."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch


class RoutingWorkerExtension:
    """Mixed into vLLM's worker (`worker_extension_cls`). Ranks hold the same counts: read rank 0's."""

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

    def _prismoe_model(self) -> Any:
        return self.model_runner.get_model()  # type: ignore[attr-defined]
