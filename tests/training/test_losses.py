"""The losses compared with float64, one token at a time, and the targets of their gradients."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from prismoe.kernels.mixture import log_joint
from prismoe.kernels.routing import PADDING, TEXT
from prismoe.model_plugins.routing.policy import RouterInputs
from prismoe.model_plugins.tools.calibrate.fits.mixture import slow_components
from prismoe.training.losses import (
    balance_loss,
    conflict_loss,
    diversity_loss,
    entropy_floor_loss,
    mixture_loss,
    modality_contrast,
    reactivation_loss,
    reconstruction_loss,
    routed_conflict_loss,
    text_balance_loss,
    utilisation_floor_loss,
    z_loss,
)
from prismoe.training.model.moe_llava import LayerDecision
from tests.kernels import reference


def routing_of(logits: torch.Tensor, segment: torch.Tensor) -> LayerDecision:
    weights, experts = logits.softmax(-1).topk(2)
    asks_nothing = torch.zeros(len(logits), 2, dtype=torch.int32)
    step = RouterInputs(torch.empty(len(logits), 0), logits, segment, asks_nothing, {}, logits.shape[1])
    is_tail = torch.zeros(len(logits), dtype=torch.bool)
    return LayerDecision(logits.softmax(-1), experts, weights, is_tail, step, asked=None, logits_TE=logits)


def load_times_probability(logits: torch.Tensor) -> float:
    """Σᵢ FᵢGᵢ over all tokens, each of which chooses two experts."""
    probs = reference.probabilities(logits.numpy())
    share = np.bincount(logits.topk(2).indices.flatten().numpy(), minlength=logits.shape[1]) / 2 / len(logits)
    return float((share * probs.mean(0)).sum())


@pytest.mark.parametrize("experts", [3, 4, 16])
def test_balance_loss(experts: int) -> None:
    torch.manual_seed(0)
    logits = torch.randn(30, experts)
    segment = torch.tensor([TEXT] * 10 + [0] * 12 + [PADDING] * 8)
    routing = routing_of(logits, segment)
    every, text = load_times_probability(logits[:22]), load_times_probability(logits[:10])
    assert balance_loss(routing, segment != PADDING).item() == pytest.approx(experts * every, rel=1e-5)
    assert balance_loss(routing, segment == TEXT).item() == pytest.approx(experts * text, rel=1e-5)
    assert text_balance_loss(routing).item() == pytest.approx(text, rel=1e-5)  # Eq. 10 is without K
    shaken = torch.cat([logits[:10], torch.randn(20, experts) * 9])
    assert text_balance_loss(routing_of(shaken, segment)).item() == pytest.approx(text, rel=1e-5)


def test_perfect_balance_is_1() -> None:
    """For four experts, and for the two that belong to a modality."""
    even = torch.tensor([[2.0, 1, 0, 0], [0, 2, 1, 0], [0, 0, 2, 1], [1, 0, 0, 2]])
    everyone = torch.ones(4, dtype=torch.bool)
    assert balance_loss(routing_of(even, torch.full((4,), TEXT)), everyone).item() == pytest.approx(1)
    own_two = torch.tensor([[2.0, 1, -torch.inf, -torch.inf], [1, 2, -torch.inf, -torch.inf]])
    assert balance_loss(routing_of(own_two, torch.tensor([0, 0])), everyone[:2]).item() == pytest.approx(1)


def test_text_balance_gives_vision_tokens_no_gradient() -> None:
    logits = torch.randn(6, 4, requires_grad=True)
    segment = torch.tensor([TEXT, TEXT, 0, 0, 1, PADDING])
    text_balance_loss(routing_of(logits, segment)).backward()
    assert logits.grad is not None
    assert logits.grad[:2].abs().sum() > 0 and logits.grad[2:].abs().sum() == 0


@pytest.mark.parametrize("experts", [3, 4, 16])
def test_utilisation_floor_loss(experts: int) -> None:
    torch.manual_seed(0)
    logits = torch.randn(20, experts) + 3 * (torch.arange(experts) == 0)
    segment = torch.tensor([TEXT] * 5 + [0] * 9 + [PADDING] * 6)
    probs = reference.probabilities(logits[:14].numpy())
    chosen = logits[:14].topk(2).indices.flatten().tolist()
    lacks = [max(0, 0.9 - experts * chosen.count(e) / len(chosen)) for e in range(experts)]
    expected = np.mean([lack * (1 - probs[:, e].mean()) for e, lack in enumerate(lacks)])
    assert expected > 0
    found = utilisation_floor_loss(routing_of(logits, segment), segment != PADDING, 0.9)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_utilisation_floor_only_raises_the_experts_below_it() -> None:
    logits = torch.tensor([[3.0, 2, 0, 0], [3, 0, 2, 0], [3, 2, 0, 0]], requires_grad=True)
    routing = routing_of(logits, torch.full((3,), TEXT))  # shares of 1/2, 1/3, 1/6 and 0
    everyone = torch.ones(3, dtype=torch.bool)
    utilisation_floor_loss(routing, everyone, 0.5).backward()
    assert logits.grad is not None
    assert (logits.grad < 0).tolist() == [[False, False, False, True]] * 3
    two_of_two = routing_of(torch.randn(3, 2), torch.full((3,), TEXT))
    assert utilisation_floor_loss(two_of_two, everyone, 1.0) == 0


@pytest.mark.parametrize("experts", [2, 5, 16])
def test_entropy_floor_loss(experts: int) -> None:
    torch.manual_seed(0)
    logits, is_counted = 4 * torch.randn(20, experts), torch.arange(20) < 13
    probs = reference.probabilities(logits[:13].numpy())
    lacks = [max(0.0, 0.8 + sum(p * math.log2(p) for p in row)) for row in probs]
    assert 0 < sum(lack > 0 for lack in lacks) < 13
    found = entropy_floor_loss(logits.softmax(-1), is_counted, 0.8)
    assert found.item() == pytest.approx(np.mean(lacks), rel=1e-4)


def test_diversity_loss() -> None:
    embeddings = torch.randn(5, 7)
    rows = embeddings.double().numpy()
    apart = math.sqrt(sum((rows[i] @ rows[j] - (i == j)) ** 2 for i in range(5) for j in range(5)))
    short = np.mean([math.sqrt(row @ row) for row in rows])
    assert diversity_loss(embeddings).item() == pytest.approx(apart + short, rel=1e-5)


@pytest.mark.parametrize("experts", [2, 5, 16])
def test_z_loss(experts: int) -> None:
    logits = torch.randn(7, experts)
    expected = np.mean([math.log(sum(math.exp(z) for z in row)) ** 2 for row in logits.tolist()])
    assert z_loss(logits).item() == pytest.approx(expected, rel=1e-5)


def test_conflict_loss() -> None:
    torch.manual_seed(0)
    logits, gradients = torch.randn(20, 4), torch.randn(20, 6)
    experts = logits.argmax(-1)
    found = []
    for token in range(20):
        mean = gradients[experts == experts[token]].double().mean(0).numpy()
        own = gradients[token].double().numpy()
        if own @ mean / np.linalg.norm(own) / np.linalg.norm(mean) < 0.3:
            negated = reference.probabilities(-logits[token : token + 1].numpy())[0]
            found.append(-math.log(negated[experts[token]]))
    assert 0 < len(found) < 20
    assert conflict_loss(logits, experts, gradients, 0.3).item() == pytest.approx(np.mean(found), rel=1e-5)


def test_conflict_loss_only_lowers_the_score_of_conflicting_tokens() -> None:
    logits = torch.zeros(3, 2, requires_grad=True)
    gradients = torch.tensor([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0]])
    conflict_loss(logits, torch.tensor([0, 0, 0]), gradients).backward()
    assert logits.grad is not None
    assert not logits.grad[:2].any()
    assert logits.grad[2, 0] > 0 > logits.grad[2, 1]  # a step down the gradient leaves expert 0


def test_every_choice_of_a_token_can_be_in_conflict() -> None:
    """An expert's weight scales its tokens' gradients. A shared expert is never chosen, and not included."""
    torch.manual_seed(0)
    routing = routing_of(torch.randn(15, 4), torch.full((15,), TEXT))
    gradients = torch.randn(15, 6)
    shared = torch.full((15, 1), 4)
    with_shared = replace(
        routing,
        experts_TA=torch.cat([shared, routing.experts_TA], dim=1),
        weights_TA=torch.cat([torch.ones(15, 1), routing.weights_TA], dim=1),
    )
    assert routing.logits_TE is not None
    expected = conflict_loss(
        routing.logits_TE.repeat_interleave(2, dim=0),
        routing.experts_TA.flatten(),
        (routing.weights_TA[:, :, None] * gradients[:, None]).flatten(0, 1),
    )
    assert expected > 0
    for found in (routing, with_shared):
        assert routed_conflict_loss(found, gradients).item() == pytest.approx(expected.item(), rel=1e-6)


def test_without_conflicts_the_loss_is_zero() -> None:
    assert conflict_loss(torch.randn(3, 4), torch.tensor([0, 1, 2]), torch.randn(3, 5)) == 0


def test_modality_contrast() -> None:
    torch.manual_seed(0)
    logits = torch.randn(12, 4)
    segment = torch.tensor([TEXT] * 3 + [0] * 4 + [1] * 3 + [PADDING] * 2)
    probs = reference.probabilities(logits.numpy())
    text, vision = probs[:3].mean(0), probs[3:10].mean(0)
    middle = (text + vision) / 2
    divergence = sum(0.5 * (p * np.log2(p / middle)).sum() for p in (text, vision))
    assert modality_contrast(logits, segment).item() == pytest.approx(1 - divergence, rel=1e-5)


def test_modality_contrast_at_its_limits() -> None:
    apart = torch.tensor([[500.0, 0.0], [0.0, 500.0]], requires_grad=True)
    shared_none = modality_contrast(apart, torch.tensor([TEXT, 0]))
    assert shared_none.item() == pytest.approx(0, abs=1e-6)
    shared_none.backward()
    assert apart.grad is not None and apart.grad.isfinite().all()
    assert modality_contrast(torch.zeros(2, 2), torch.tensor([TEXT, 0])).item() == pytest.approx(1)
    logits = torch.randn(3, 4, requires_grad=True)
    alone = modality_contrast(logits, torch.full((3,), TEXT))
    assert alone.item() == pytest.approx(1)
    alone.backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.zeros(3, 4))


def test_reconstruction_loss_only_trains_the_autoencoder() -> None:
    hidden, rebuilt = torch.randn(5, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    loss = reconstruction_loss(hidden, rebuilt)
    difference = (hidden - rebuilt).detach().double().numpy()
    expected = np.mean([(row**2).sum() for row in difference])
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert hidden.grad is None and rebuilt.grad is not None


def mixtures(tokens: int = 6) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4)
    return {
        "latent_TL": torch.randn(tokens, 5),
        "log_mixing_KEM": logits - logits.logsumexp((-2, -1), keepdim=True),
        "means_KEML": torch.randn(2, 3, 4, 5),
        "log_variances_KEML": 0.5 * torch.randn(2, 3, 4, 5),
    }


def likelihood(own: dict[str, torch.Tensor], token: int, mixture: int, components: torch.Tensor) -> float:
    """Σ π N(z; μ, Σ) over the chosen components of a mixture."""
    z = own["latent_TL"][token].double().numpy()
    total = 0.0
    for expert, component in components[mixture].nonzero().tolist():
        at = (mixture, expert, component)
        mean = own["means_KEML"][at].double().numpy()
        variance = np.exp(own["log_variances_KEML"][at].double().numpy())
        density = np.exp(-0.5 * (z - mean) ** 2 / variance) / np.sqrt(2 * np.pi * variance)
        total += math.exp(own["log_mixing_KEM"][at].item()) * density.prod()
    return total


def test_mixture_loss() -> None:
    own, every = mixtures(), torch.ones(2, 3, 4, dtype=torch.bool)
    expected = -np.mean(
        [sum(math.log(likelihood(own, token, mixture, every)) for mixture in range(2)) for token in range(6)]
    )
    assert mixture_loss(log_joint(**own)).item() == pytest.approx(expected, rel=1e-5)


def test_reactivation_loss_is_that_of_the_slow_components() -> None:
    own, slow = mixtures(), torch.zeros(2, 3, 4, dtype=torch.bool)
    slow[1, 0, 2] = slow[1, 2, 1] = True
    expected = -np.mean([math.log(likelihood(own, token, 1, slow)) for token in range(6)])
    assert reactivation_loss(log_joint(**own), slow).item() == pytest.approx(expected, rel=1e-5)
    own["means_KEML"].requires_grad_()
    reactivation_loss(log_joint(**own), slow).backward()
    assert (own["means_KEML"].grad.abs().sum(-1) > 0).tolist() == slow.tolist()  # type: ignore[union-attr]
    assert reactivation_loss(log_joint(**own), torch.zeros_like(slow)) == 0


def test_rare_components_are_slow() -> None:
    mixing = torch.tensor([[[0.97, 0.01, 0.01, 0.01]]])
    drawn = torch.stack([slow_components(mixing.log(), torch.Generator().manual_seed(s)) for s in range(500)])
    rates = drawn.float().mean(0)[0, 0]
    assert rates[0] == 0
    torch.testing.assert_close(rates[1:], torch.full((3,), 0.96), atol=0.04, rtol=0)
