"""The data that `prismoe calibrate` writes beside settings: their model, and their effect there."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

CALIBRATED = "calibrated"
"""The key of this data in the settings."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelIdentity(_Part):
    """The checkpoint that settings were fitted to."""

    architecture: str
    layers: int
    """The number of layers with experts."""
    experts: int
    top_k: int
    weights: str
    """`files.weight_files.weights_digest` of the checkpoint."""

    def __str__(self) -> str:
        return (
            f"{self.architecture} with {self.layers} MoE layers, {self.experts} experts and k {self.top_k}, "
            f"weights {self.weights[:12]}"
        )

    def check(self, served: "ModelIdentity") -> None:
        """Raise ValueError where the served model is another one."""
        if self != served:
            raise ValueError(self._refusal(str(served)))

    def check_weights(self, weights: str) -> None:
        """Raise ValueError where the weights' digest differs, before the model is loaded."""
        if self.weights != weights:
            raise ValueError(self._refusal(f"weights {weights[:12]}"))

    def _refusal(self, served: str) -> str:
        return (
            f"The routing settings were calibrated for another model ({self}) than this one ({served}): "
            "run prismoe calibrate on this checkpoint, or leave the settings out."
        )


class Measured(_Part):
    """The effect of the fitted policy on the calibration's prompts, in the model itself.

    The modalities are the model's own. Values by layer are in the order of its MoE layers.
    """

    prompts: int
    tokens: Mapping[str, int]
    """The prompts' tokens, by modality."""
    skipped: Mapping[str, tuple[float, ...]]
    """The share of native's uses of experts that a modality's tokens skip, by layer; negative where they use
    more experts."""
    divergence: float
    """The mean KL divergence, in nats, of native's distributions over its answers' tokens from the
    policy's."""
    layer_divergence: Mapping[str, tuple[float, ...]]
    """The same for text and for vision, each without the experts of one layer, by layer; empty where the fit
    does not need it."""
    rank_error: float
    """The largest error of a threshold's rank among the measured values, as a share; 0 is exact."""


class Calibrated(_Part):
    """The data beside the settings."""

    model: ModelIdentity
    measured: Measured

    @classmethod
    def model_of(cls, routing: Mapping[str, Any]) -> ModelIdentity | None:
        """The model that settings were calibrated for; None for other settings.

        Raises ValueError where the data can't be read.
        """
        if CALIBRATED not in routing:
            return None
        try:
            return cls.model_validate(routing[CALIBRATED]).model
        except ValidationError as error:
            fault = error.errors()[0]
            name = ".".join(map(str, (CALIBRATED, *fault["loc"])))
            raise ValueError(
                f"The routing settings' {name} is not as prismoe calibrate writes it ({fault['msg']}): "
                "calibrate again."
            ) from error
