"""Reports the effect of calibration: on a sample of the recorded tokens, or measured in the model."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

from prismoe.kernels.balance import variation
from prismoe.kernels.mixture import expert_posteriors, log_joint
from prismoe.kernels.routing import ranked_experts, router_probabilities, routing_entropy
from prismoe.model_plugins.routing.calibrated import Measured
from prismoe.model_plugins.routing.policies.gmm import GMM
from prismoe.model_plugins.routing.policy import RouterInputs, Routing, RoutingPolicy
from prismoe.model_plugins.routing.registry import RoutingInForce
from prismoe.model_plugins.tools.calibrate.fits.data import CalibrationData, TokenSample

Routers = Mapping[int, Mapping[str, Tensor]]


@dataclass(frozen=True)
class LayerSummary:
    """A summary of one router over the recorded tokens.

    `experts` are the mean uses of experts per token, of text and of vision; `entropy_bits` is the mean
    entropy of its probabilities over experts; `load_cv` is the coefficient of variation of the experts' uses.
    """

    experts: tuple[float, float]
    entropy_bits: float
    load_cv: float


def report(data: CalibrationData, before: RoutingInForce, after: RoutingInForce, routers: Routers) -> str:
    """A table of each layer's router before and after; `routers` are the tensors of the one after."""
    lines = [
        f"{'':7}{'experts a token':^27}{'':8}",
        f"{'layer':7}{'text':>13}{'vision':>14}{'routing entropy':>18}{'load CV':>15}{'agreement':>11}",
    ]
    for layer, sample in data.samples().items():
        old = _Router(before.layers[layer].policy, sample, {})
        new = _Router(after.layers[layer].policy, sample, routers.get(layer, {}))
        lines.append(f"{layer!s:7}{''.join(_changes(old.summary(), new.summary()))}{new.agreement():>11.1%}")
    lines.append(
        "Before → after. Entropy in bits. Agreement: share of a token's n experts among the gate's n best."
    )
    return "\n".join(lines)


def measured_report(layers: Sequence[int], measured: Measured) -> str:
    """A table of the uses of experts that each layer skips, by modality, and the answers' divergence."""
    lines = ["expert uses skipped", f"{'layer':7}" + "".join(f"{name:>9}" for name in measured.skipped)]
    for place, layer in enumerate(layers):
        lines.append(f"{layer!s:7}" + "".join(f"{of[place]:>9.1%}" for of in measured.skipped.values()))
    means = [sum(of) / len(of) for of in measured.skipped.values()]
    lines.append(f"{'all':7}" + "".join(f"{mean:>9.1%}" for mean in means))
    lines.append(
        f"Shares of native's uses, over {measured.prompts} prompts. The answers' tokens diverge from "
        f"native's by {measured.divergence:.3g} nats on average."
    )
    return "\n".join(lines)


def _changes(old: LayerSummary, new: LayerSummary) -> Iterator[str]:
    for a, b in zip(old.experts, new.experts, strict=True):
        yield f"{f'{a:.2f} → {b:.2f}':>14}"
    yield f"{f'{old.entropy_bits:.2f} → {new.entropy_bits:.2f}':>17}"
    yield f"{f'{old.load_cv:.2f} → {new.load_cv:.2f}':>15}"


class _Router:
    """A policy with its parameters, on a sample of tokens."""

    def __init__(self, policy: RoutingPolicy, sample: TokenSample, parameters: Mapping[str, Tensor]) -> None:
        self.segment_T = sample.segment_N
        self.step = RouterInputs(
            sample.hidden_ND,
            sample.logits_NE,
            sample.segment_N,
            torch.zeros(len(sample.segment_N), 2, dtype=torch.int32),
            parameters,
            sample.logits_NE.shape[1],
        )
        self.policy = policy
        self.routing: Routing = policy.route(self.step)
        self.used_TA = torch.arange(self.routing.experts_TA.shape[1]) < self.routing.count_T[:, None]

    def summary(self) -> LayerSummary:
        is_vision_T, count_T = self.segment_T >= 0, self.routing.count_T.double()
        used_experts = self.routing.experts_TA[self.used_TA]
        load_E = torch.bincount(used_experts, minlength=self.step.num_experts)
        return LayerSummary(
            (count_T[~is_vision_T].mean().item(), count_T[is_vision_T].mean().item()),
            routing_entropy(self._probabilities()).mean().item() / math.log(2),
            variation(load_E.numpy()),
        )

    def agreement(self) -> float:
        """The share of a token's n experts that are among the gate's n best."""
        order_TE, _ = ranked_experts(self.step.logits_TE, self.step.num_experts)
        rank_TA = order_TE.argsort(dim=1).gather(1, self.routing.experts_TA)
        return (rank_TA < self.routing.count_T[:, None])[self.used_TA].double().mean().item()

    def _probabilities(self) -> Tensor:
        """The probabilities of the experts: the gate's softmax, or the mean of the k mixtures' posteriors."""
        if not isinstance(self.policy, GMM):
            return router_probabilities(self.step.logits_TE)
        own = self.step.parameters
        latent_TL = linear(self.step.hidden_TD, own["encoder"], own["encoder_bias"])
        return expert_posteriors(
            log_joint(latent_TL, own["log_mixing"], own["means"], own["log_variances"])
        ).mean(dim=1)
