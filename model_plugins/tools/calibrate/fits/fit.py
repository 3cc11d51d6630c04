"""What a fit gives, and which policies have one."""

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
        """The checkpoint's `prismoe_routing`."""
        layers = {str(layer): dict(own) for layer, own in self.layers.items()}
        return dict(self.settings) | ({"layers": layers} if layers else {})


@dataclass(frozen=True)
class Goal:
    """What the fitted router is to do, apart from `settings` of its policy that stay as they are given."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    skip_overall: float = 0.25
    """`dual_threshold`: the share of all expert uses to skip, by a search for the two thresholds."""
    skip: float | None = None
    """The share of vision expert uses to skip. With it or `skip_text` nothing is searched; the other is 0."""
    skip_text: float | None = None
    """The same, of text."""
    tail_share: float | None = None
    """`ltdr`: the share of vision tokens to be tail; None: as many as are above their image's mean."""
    mean_experts: float | None = None
    """`entropy`: the mean number of experts a token; None: the checkpoint's k."""

    @property
    def searches(self) -> bool:
        """Whether `dual_threshold` searches its thresholds."""
        return self.skip is None and self.skip_text is None


@dataclass(frozen=True)
class Fitter:
    """How a policy is fitted, what has to be recorded for that, and the settings that the fit decides."""

    fit: Callable[[CalibrationData, Goal], RouterFit]
    measure: Measure | None = None
    """What is sketched of each token; None where the fit looks at a sample of the tokens themselves."""
    needs_hidden: bool = False
    """Whether the sample needs hidden states."""
    needs_divergence: bool = False
    decides: frozenset[str] = frozenset()
    neutral: Mapping[str, Any] = field(default_factory=dict)
    """Of what the fit decides, what the policy can't start without."""
    check: Callable[[int, Goal], None] = lambda _top_k, _goal: None
    """Raises ValueError with a sentence where a model with this k can't reach the goal."""


def fitter(policy: str, settings: Mapping[str, Any]) -> Fitter:
    """The fit of a policy under these settings of it.

    Raises ValueError with a sentence where there is nothing to fit, or where the settings are the fit's own.
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
