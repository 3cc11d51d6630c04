"""What `prismoe calibrate` writes beside settings: which model they are for, and what they do there."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

CALIBRATED = "calibrated"
"""The key of it among the settings."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelIdentity(_Part):
    """What settings that were fitted to a checkpoint hold for."""

    architecture: str
    layers: int
    """Those with experts."""
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
        """Raise ValueError with a sentence where the model that is served is another."""
        if self != served:
            raise ValueError(
                f"The routing settings were calibrated for another model ({self}) than this one ({served}): "
                "run prismoe calibrate on this checkpoint, or leave the settings out."
            )


class Measured(_Part):
    """What the fitted policy does over the calibration's prompts, in the model itself.

    Modalities are the model's own; what is told by layer is in the order of its MoE layers.
    """

    prompts: int
    tokens: Mapping[str, int]
    """Of the prompts, by modality."""
    skipped: Mapping[str, tuple[float, ...]]
    """The share of native's expert uses that tokens of a modality leave out, by layer; below 0 where they
    use more."""
    divergence: float
    """The mean KL divergence, in nats, of native's answers' tokens from those under the policy."""
    layer_divergence: Mapping[str, tuple[float, ...]]
    """The same by layer for text and vision, each without that layer's experts; empty where the fit does not
    ask for it."""
    rank_error: float
    """The share by which the place of a threshold among the measured values may be off; 0 is exact."""


class Calibrated(_Part):
    """What is said beside the settings."""

    model: ModelIdentity
    measured: Measured

    @classmethod
    def model_of(cls, routing: Mapping[str, Any]) -> ModelIdentity | None:
        """The model that settings were calibrated for, if they were.

        Raises ValueError with a sentence where that can't be read.
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
