"""The methods of a worker process that the server and the tools call over vLLM's RPC."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from prismoe.model_plugins.moe_layer.model_routing import ModelRouting, runners_of
from prismoe.model_plugins.recording import peak_memory
from prismoe.model_plugins.recording.inspection import InspectionRecorder
from prismoe.model_plugins.routing import RoutedBy
from prismoe.model_plugins.routing.thresholds import ThresholdsByLayer


class RoutingCalls:
    """The RPC methods of `RoutedWorker`. All ranks hold the same counts: read rank 0's."""

    routing: ModelRouting
    _prismoe_inspection: InspectionRecorder | None = None

    def prismoe_routing(self) -> Mapping[str, Any]:
        """The routing in force, per layer (`ModelRouting.describe`)."""
        return self.routing.describe()

    @torch.inference_mode()
    def prismoe_route_by(self, choice: RoutedBy) -> bool:
        """Route by this choice from the next step on (`ModelRouting.route_by`)."""
        return self.routing.route_by(choice)

    @torch.inference_mode()
    def prismoe_change_thresholds(self, by_layer: ThresholdsByLayer) -> bool:
        """Route by these thresholds from the next step on (`ModelRouting.change_thresholds`)."""
        return self.routing.change_thresholds(by_layer)

    @torch.inference_mode()
    def prismoe_expert_load(self) -> Mapping[str, Any]:
        """The load counted so far (`ModelRouting.load`)."""
        return self.routing.load()

    @torch.inference_mode()
    def prismoe_reset_expert_load(self) -> None:
        """Restart counting at zero (`ModelRouting.reset_load`)."""
        self.routing.reset_load()

    @torch.inference_mode()
    def prismoe_step(self) -> None:
        """Run a step with only padding, which counts nothing, and wait until the device has finished it."""
        # Data-parallel engines of MoE models step together; a single one would wait for the others.
        if self.parallel_config.data_parallel_size == 1:  # type: ignore[attr-defined]
            self.execute_dummy_batch()  # type: ignore[attr-defined]
        torch.zeros(1, device=self.device).item()  # type: ignore[attr-defined]

    def prismoe_unused_tensors(self) -> Sequence[str]:
        """The names of the checkpoint's tensors that the model does not use."""
        unused: Sequence[str] = self._prismoe_model().unused_tensors
        return unused

    def prismoe_start_recording(self) -> None:
        """Record what is computed for each token from now on (`ReferenceRecorder`)."""
        from prismoe.model_plugins.recording.reference import ReferenceRecorder

        self._prismoe_recorder = ReferenceRecorder(self._prismoe_model(), self.routing)

    @torch.inference_mode()
    def prismoe_save_recording(self, file: str) -> None:
        """Write the recording since the last call to an .npz file."""
        self._save(file, self._prismoe_recorder.take())

    def prismoe_start_calibration(self, *values: Any, most_answered: int) -> None:
        """Record these `TokenValues` from now on, and up to `most_answered` answered tokens per request."""
        from prismoe.model_plugins.recording.calibration import CalibrationRecorder, TokenValues

        model = self._prismoe_model()
        self._prismoe_calibration = CalibrationRecorder(
            model, self.routing, TokenValues(*values), most_answered
        )

    def prismoe_deprive(self, layer: int, modality: str) -> None:
        """Withhold a layer's experts from a modality's tokens, until the next call; -1 withholds none."""
        self._prismoe_calibration.deprived = None if layer < 0 else (layer, modality)

    def prismoe_record_request(self) -> None:
        """Record the next request (`CalibrationRecorder.begin`)."""
        self._prismoe_calibration.begin()

    @torch.inference_mode()
    def prismoe_save_request(self, file: str, seed: int) -> None:
        """Write the recorded request (`CalibrationRecorder.take`) to an .npz file."""
        self._save(file, self._prismoe_calibration.take(seed))

    @torch.inference_mode()
    def prismoe_save_log_probs(self, file: str, tokens: int) -> None:
        """Write the `log_probs` of the last request's last `tokens` tokens to an .npz file."""
        self._save(file, {"log_probs": self._prismoe_calibration.log_probs(tokens)})

    @torch.inference_mode()
    def prismoe_reroute(self, routing: Mapping[str, Any] | None) -> None:
        """Route by other settings of the policies in force (`ModelRouting.reroute`)."""
        self.routing.reroute(routing)

    def prismoe_identity(self) -> Mapping[str, Any]:
        """The identity of the model's checkpoint (`ModelIdentity`)."""
        from prismoe.model_plugins.moe_layer.attached.identity import identity_of

        runners = runners_of(self._prismoe_model())
        return identity_of(self.vllm_config, runners).model_dump()  # type: ignore[attr-defined]

    def prismoe_watch_memory(self) -> None:
        """Measure the peak memory from now on."""
        peak_memory.begin()

    def prismoe_peak_memory(self) -> tuple[int, int, int]:
        """The peak memory since `prismoe_watch_memory` (`PeakMemory`)."""
        return peak_memory.peak()

    def _save(self, file: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Write arrays to a file on this machine, on rank 0 only."""
        if self.rank == 0:  # type: ignore[attr-defined]
            np.savez(file, allow_pickle=False, **arrays)

    def prismoe_inspectable(self) -> Mapping[str, Any]:
        """The grid of an image's tokens, the most experts that a request may ask for, and the MoE layers."""
        grid = getattr(self._prismoe_model(), "patch_grid", None)
        return {
            "grid": grid and grid.model_dump(),
            "request_experts": self.routing.most_request_experts,
            "moe_layers": len(self.routing.layers),
        }

    def prismoe_start_inspection(self, request: str, most_tokens: int, with_logits: bool) -> None:
        """Record the routing of a request's tokens (`InspectionRecorder`); an earlier recording ends."""
        if self._prismoe_inspection is not None:
            self._prismoe_inspection.end()
        runner = self.model_runner  # type: ignore[attr-defined]
        self._prismoe_inspection = InspectionRecorder(runner, self.routing, request, most_tokens, with_logits)

    def prismoe_end_inspection(self, request: str) -> None:
        """Stop recording this request, and discard the recording."""
        if self._prismoe_inspection is not None and self._prismoe_inspection.request == request:
            self._prismoe_inspection.end()
            self._prismoe_inspection = None

    def prismoe_inspected_rows(self, request: str) -> Mapping[str, Any] | None:
        """The recording of this request so far (`InspectionRecorder.rows`), from rank 0."""
        inspection = self._prismoe_inspection
        if inspection is None or inspection.request != request or self.rank != 0:  # type: ignore[attr-defined]
            return None
        return inspection.rows()

    def _prismoe_model(self) -> Any:
        return self.model_runner.get_model()  # type: ignore[attr-defined]
