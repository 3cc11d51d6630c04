"""The result of a fit, and the policies that have one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from prismoe.model_plugins.routing.measures import Measure
from prismoe.model_plugins.routing.policy import POLICY_MODALITIES
from prismoe.model_plugins.tools.calibrate.fits.data import CalibrationData


@dataclass(frozen=True)
class RouterFit:
    """A policy's settings for config.json (common ones, and each layer's own) and its tensors by layer."""

    settings: Mapping[str, Any]
    layers: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    tensors: Mapping[int, Mapping[str, Tensor]] = field(default_factory=dict)

    def routing(self) -> dict[str, Any]:
        """The value of `prismoe_routing` in the checkpoint's config.json."""
        layers = {str(layer): dict(own) for layer, own in self.layers.items()}
        return dict(self.settings) | ({"layers": layers} if layers else {})


@dataclass(frozen=True)
class Goal:
    """The goal of the fit, and `settings` of the policy that it keeps."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    skip_overall: float = 0.25
    """`dual_threshold`: the share of all expert uses to skip, by a search for the two thresholds."""
    skip: float | None = None
    """The share of vision's uses of experts to skip. If this or `skip_text` is set, nothing is searched, and
    the other defaults to 0."""
    skip_text: float | None = None
    """The share of text's uses of experts to skip."""
    tail_share: float | None = None
    """`ltdr`: the share of vision tokens that should be tail tokens; None: those above their image's mean."""
    mean_experts: float | None = None
    """`entropy`: the mean number of experts per token; None: the checkpoint's k."""

    @property
    def searches(self) -> bool:
        """Whether `dual_threshold` searches its thresholds."""
        return self.skip is None and self.skip_text is None


@dataclass(frozen=True)
class Fitter:
    """The fit of a policy, what must be recorded for it, and the settings that it decides."""

    fit: Callable[[CalibrationData, Goal], RouterFit]
    measure: Measure | None = None
    """The measure of each token to sketch; None where the fit uses a sample of the tokens themselves."""
    needs_hidden: bool = False
    """Whether the sample needs hidden states."""
    needs_divergence: bool = False
    decides: frozenset[str] = frozenset()
    neutral: Mapping[str, Any] = field(default_factory=dict)
    """Values that let the policy start before the fit has decided them."""
    check: Callable[[int, Goal], None] = lambda _top_k, _goal: None
    """Raises ValueError where a model with this k can't reach the goal."""


def fitter(policy: str, settings: Mapping[str, Any]) -> Fitter:
    """The fit of a policy with these settings.

    Raises ValueError where there is nothing to fit, and for settings that the fit decides.
    """
    from prismoe.model_plugins.tools.calibrate.fits import dual_threshold, entropy, equiroute, gmm, ltdr

    importances = {f"{modality}_{of}" for modality in POLICY_MODALITIES for of in ("importance", "threshold")}
    fitters = {
        "ltdr": Fitter(ltdr.fit, "variance", decides=frozenset({"threshold"}), neutral={"threshold": 0.0}),
        "dual_threshold": Fitter(
            dual_threshold.fit,
            "weights",
            needs_divergence=True,
            decides=frozenset(importances),
            check=dual_threshold.check,
        ),
        "entropy": Fitter(entropy.fit, "entropy", decides=frozenset({"low", "high"})),
        "equiroute": Fitter(equiroute.fit),
        "gmm": Fitter(gmm.fit, needs_hidden=True),
    }
    if policy not in fitters:
        raise ValueError(f"There is nothing to calibrate for {policy}: give one of {', '.join(fitters)}.")
    if decided := sorted((fitters[policy].decides | {"layers"}) & set(settings)):
        raise ValueError(f"Calibration decides {', '.join(decided)} by layer: leave that out of --routing.")
    return fitters[policy]
