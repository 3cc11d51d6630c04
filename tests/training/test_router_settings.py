"""A router trains with the losses that its run chooses."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from prismoe.kernels.routing import PADDING, TEXT
from prismoe.training.comparison.contenders import CONTENDERS, Trained
from prismoe.training.comparison.start import start
from prismoe.training.losses import (
    balance_loss,
    entropy_floor_loss,
    modality_contrast,
    routed_conflict_loss,
    text_balance_loss,
    utilisation_floor_loss,
    z_loss,
)
from prismoe.training.model.moe_llava import DeepSpeedMoE, LayerDecision, MoELLaVA, prompt_tokens
from prismoe.training.router_settings import RouterSettings, published
from prismoe.training.router_training import router_training
from prismoe.training.stages import token_gradients
from tests.training.model.test_moe_llava import IMAGE, SMALL, SMALL_TOWER, images, prompts
from tests.training.test_router_training import SEGMENT_T, asked, hidden


def model_of(name: str) -> MoELLaVA:
    contender = CONTENDERS[name]
    assert isinstance(contender, Trained)
    torch.manual_seed(0)
    return start(MoELLaVA(SMALL, SMALL_TOWER), (0, 2), contender)


def of(is_counted: Callable[[Tensor], Tensor]) -> Callable[[LayerDecision, Tensor], Tensor]:
    return lambda routing, _: balance_loss(routing, is_counted(routing.segment_T))


def logits_of(routing: LayerDecision) -> Tensor:
    assert routing.logits_TE is not None
    return routing.logits_TE


BALANCES: dict[str, Callable[[LayerDecision, Tensor], Tensor]] = {
    "all": of(lambda segment_T: segment_T != PADDING),
    "text": lambda routing, _: text_balance_loss(routing),
    "vision": of(lambda segment_T: segment_T >= 0),
    "modality": lambda routing, _: (
        balance_loss(routing, routing.segment_T == TEXT) + balance_loss(routing, routing.segment_T >= 0)
    ),
    "none": lambda *_: torch.zeros(()),
}
CHOICES: list[tuple[dict[str, Any], Callable[[LayerDecision, Tensor], Tensor]]] = [
    ({"z_loss": True}, lambda r, _: 0.1 * z_loss(logits_of(r)[r.segment_T != PADDING])),
    ({"conflict": True}, routed_conflict_loss),
    ({"modality_contrast": True}, lambda r, _: modality_contrast(r.probs_TE.log(), r.segment_T)),
    ({"utilisation_floor": 0.9}, lambda r, _: utilisation_floor_loss(r, r.segment_T != PADDING, 0.9)),
    ({"entropy_floor": 1.9}, lambda r, _: entropy_floor_loss(r.probs_TE, r.segment_T != PADDING, 1.9)),
]


def loss_of(moe: DeepSpeedMoE, routing: LayerDecision, gradient_TD: Tensor, **settings: Any) -> float:
    training = router_training(moe, RouterSettings.model_validate(settings))
    return training.loss(moe, routing, gradient_TD).item()


@pytest.mark.parametrize("balance", BALANCES)
@torch.no_grad()
def test_the_chosen_balance_is_used(balance: str) -> None:
    moe, gradient_TD = model_of("topk").moe_layers[0], hidden(8)
    routing = moe.route(hidden(), SEGMENT_T, asked())
    expected = 0.01 * BALANCES[balance](routing, gradient_TD)
    assert loss_of(moe, routing, gradient_TD, balance=balance) == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(("settings", "chosen"), CHOICES, ids=lambda choice: str(choice)[:20])
@torch.no_grad()
def test_a_chosen_loss_is_added(
    settings: dict[str, Any], chosen: Callable[[LayerDecision, Tensor], Tensor]
) -> None:
    moe, gradient_TD = model_of("topk").moe_layers[0], hidden(8)
    routing = moe.route(8 * hidden(), SEGMENT_T, asked())
    expected = 0.01 * chosen(routing, gradient_TD).item()
    assert expected > 0
    found = loss_of(moe, routing, gradient_TD, balance="none", **settings)
    assert found == pytest.approx(expected, rel=1e-4)


def test_each_paper_has_its_settings() -> None:
    assert published("topk") == RouterSettings(balance="all")
    assert published("ltdr") == RouterSettings(balance="text")
    assert published("modality_groups") == RouterSettings(balance="modality")
    assert published("top_any") == RouterSettings(balance="none", diversity=True)
    for policy in ("gmm", "bias_corrected", "cluster", "instruction"):
        assert published(policy) == RouterSettings(balance="none")


@pytest.mark.parametrize(
    ("router", "settings", "name"),
    [
        ("topk", {"diversity": True}, "diversity"),
        ("topk", {"reactivation": False}, "reactivation false"),
        ("topk", {"tail_mean": "batch"}, "tail_mean batch"),
        ("gmm", {"z_loss": True}, "z_loss"),
        ("top_any", {"conflict": True}, "conflict"),
        ("modality_groups, v2Top1-t2Top1", {"modality_contrast": True}, "modality_contrast"),
    ],
)
def test_settings_without_meaning_for_a_router_are_refused(
    router: str, settings: dict[str, Any], name: str
) -> None:
    policy = router.partition(",")[0]
    with pytest.raises(ValueError, match=f"^{name} has no meaning for a router of {policy}: leave it out"):
        router_training(model_of(router).moe_layers[0], RouterSettings.model_validate(settings))


def test_unknown_choices_are_refused() -> None:
    with pytest.raises(ValidationError):
        RouterSettings.model_validate({"balance": "audio"})
    with pytest.raises(ValidationError):
        RouterSettings.model_validate({"zloss": True})


@pytest.mark.parametrize("conflict", [False, True])
def test_conflicts_are_computed_from_the_gradient_at_each_layers_output(conflict: bool) -> None:
    """The gradient is compared with the effect of a small change of one layer's output."""
    model = model_of("topk")
    settings = RouterSettings(conflict=conflict)
    routers = [router_training(moe, settings) for moe in model.moe_layers]
    tokens = prompt_tokens(prompts(2), IMAGE)
    logits_BSY, routings = model(images(2), tokens)
    gradients = token_gradients(logits_BSY[..., 0].square().mean(), routers, routings)
    if not conflict:
        assert gradients == [None, None]
        return
    direction_TD = torch.randn(tokens.token_BS.numel(), SMALL.hidden_size)
    for gradient_TD, moe in zip(gradients, model.moe_layers, strict=True):
        assert gradient_TD is not None
        losses = []
        for step in (1e-2, -1e-2):
            hook = moe.register_forward_hook(lambda _, __, out, by=step: (out[0] + by * direction_TD, out[1]))
            losses.append(model(images(2), tokens)[0][..., 0].double().square().mean().item())
            hook.remove()
        slope = (losses[0] - losses[1]) / 2e-2
        assert (gradient_TD * direction_TD).sum().item() == pytest.approx(slope, rel=0.05, abs=1e-5)
