"""Routers in training: they route the same as when served, and all of their parameters learn."""

import pytest
import torch
from torch import Tensor, nn

from prismoe.kernels.routing import PADDING, TEXT
from prismoe.model_plugins.routing.policy import RouterInputs
from prismoe.model_plugins.routing.request_policy import NO_TASK, RequestPolicy, Requests
from prismoe.training.comparison.contenders import ROUTERS, Trained
from prismoe.training.comparison.start import start
from prismoe.training.model.moe_llava import Asked, MoELLaVA
from prismoe.training.router_rules import BIAS_STEP
from prismoe.training.router_settings import RouterSettings
from prismoe.training.router_training import router_training
from tests.kernels import reference
from tests.training.model.test_moe_llava import SMALL, SMALL_TOWER

TRAINED = {name: contender for name, contender in ROUTERS.items() if isinstance(contender, Trained)}
SEGMENT_T = torch.tensor([TEXT] * 40 + [0] * 30 + [1] * 30 + [PADDING] * 10)


@pytest.fixture(params=TRAINED)
def contender(request: pytest.FixtureRequest) -> Trained:
    """A contender with narrower experts and latents, for the small model."""
    found = TRAINED[request.param]
    if found.expert_width:
        return found.model_copy(update={"expert_width": 32})
    if found.routing["policy"] == "gmm":
        return found.model_copy(update={"routing": {**found.routing, "latent": 8, "components": 4}})
    return found


@pytest.fixture
def model(contender: Trained) -> MoELLaVA:
    torch.manual_seed(0)
    return start(MoELLaVA(SMALL, SMALL_TOWER), (0, 2), contender)


def hidden(seed: int = 3) -> Tensor:
    return torch.randn(len(SEGMENT_T), SMALL.hidden_size, generator=torch.Generator().manual_seed(seed))


def asked(seed: int = 3) -> Asked:
    """Three or more tokens in each of 24 requests."""
    draw = torch.Generator().manual_seed(seed + 100)
    instruction_RD = torch.randn(24, SMALL.hidden_size, generator=draw)
    task_R = torch.randint(NO_TASK, 4, (24,), generator=draw)
    return Asked(Requests(task_R, instruction_RD), torch.arange(len(SEGMENT_T)) % 24)


def test_a_router_routes_the_same_in_training_and_serving(model: MoELLaVA, contender: Trained) -> None:
    """The exception is a mean over the batch, which only training mode has."""
    (moe, _), hidden_TD = model.eval().moe_layers, hidden()
    router_training(moe, contender.training).prepare(moe, moe.route(hidden_TD, SEGMENT_T, asked()))
    trained = moe.route(hidden_TD, SEGMENT_T, asked())
    weights = {name.rpartition(".")[2]: weight for name, weight in moe.state_dict().items()}
    gate_ED = moe.state_dict().get("gate.wg.weight", torch.empty(0, SMALL.hidden_size))
    asks_nothing_T2 = torch.zeros(len(hidden_TD), 2, dtype=torch.int32)
    served = SMALL.model_copy(
        update={"routing": contender.routing, "experts": contender.experts, "moe_layers": (0, 2)}
    ).policy(0)
    requests, request_T = asked()
    if isinstance(served, RequestPolicy):
        logits_TE = served.request_logits(requests, weights, contender.experts)[request_T]
    else:
        logits_TE = hidden_TD @ gate_ED.T
    expected = served.route(
        RouterInputs(hidden_TD, logits_TE, SEGMENT_T, asks_nothing_T2, weights, contender.experts)
    )
    assert torch.equal(trained.experts_TA, expected.experts_TA)
    torch.testing.assert_close(trained.weights_TA, expected.weights_TA)


def test_every_parameter_of_a_router_learns(model: MoELLaVA, contender: Trained) -> None:
    """Three steps of gradient descent for all layers' routers."""
    for moe in model.moe_layers:
        training = router_training(moe, contender.training)
        training.prepare(moe, moe.route(hidden(), SEGMENT_T, asked()))
        routed = {n: p for n, p in moe.named_parameters() if n.startswith(("gate.", "router."))}
        routed |= dict(training.named_parameters())
        before = {name: parameter.detach().clone() for name, parameter in routed.items()}
        optimizer = torch.optim.SGD([*moe.parameters(), *training.parameters()], lr=0.1)
        for seed in (4, 5, 6):
            output_TD, routing = moe(hidden(seed), SEGMENT_T, asked(seed))
            answer = output_TD.square().mean()
            (gradient_TD,) = torch.autograd.grad(answer, output_TD, retain_graph=True)
            loss = answer + training.loss(moe, routing, gradient_TD)
            assert loss.isfinite()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            training.after_step(moe, routing)
        for name, parameter in routed.items():
            assert parameter.isfinite().all()
            if name == "router.centroids":  # fitted at the start, and then constant
                continue
            assert not torch.equal(parameter, before[name]), f"{name} does not learn"
        assert all(parameter.grad is not None for parameter in moe.experts.parameters())


def test_the_bias_of_an_overloaded_expert_falls() -> None:
    torch.manual_seed(0)
    moe = start(MoELLaVA(SMALL, SMALL_TOWER), (0,), TRAINED["bias_corrected"]).moe_layers[0]
    with torch.no_grad():
        moe.gate.wg.weight.zero_()  # equal scores: all tokens choose the first two experts
    router_training(moe).after_step(moe, moe.route(hidden(), SEGMENT_T, asked()))
    assert moe.router["expert_bias"].tolist() == pytest.approx([-BIAS_STEP] * 2 + [BIAS_STEP] * 2)
    assert moe.route(hidden(), SEGMENT_T, asked()).experts_TA[0].tolist() == [2, 3]


def test_mixtures_stay_distributions() -> None:
    torch.manual_seed(0)
    moe = start(MoELLaVA(SMALL, SMALL_TOWER), (0,), TRAINED["gmm"]).moe_layers[0]
    training = router_training(moe)
    training.prepare(moe, moe.route(hidden(), SEGMENT_T, asked()))
    with torch.no_grad():
        moe.router["log_mixing"] += 1
    training.after_step(moe, moe.route(hidden(), SEGMENT_T, asked()))
    assert moe.router["log_mixing"].exp().sum(dim=(1, 2)).tolist() == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize("tail_mean", ["image", "batch"])
def test_a_tail_token_is_above_the_mean_of_its_image_or_of_the_batch(tail_mean: str) -> None:
    torch.manual_seed(0)
    moe = start(MoELLaVA(SMALL, SMALL_TOWER), (0,), TRAINED["ltdr"]).moe_layers[0]
    router_training(moe, RouterSettings.model_validate({"tail_mean": tail_mean}))
    hidden_TD = hidden() * torch.where(SEGMENT_T == 1, 9, 1)[:, None]  # the second image's RPV is larger
    logits = (hidden_TD @ moe.gate.wg.weight.T).detach().double().numpy()
    rpv = reference.probabilities(logits).var(axis=1)
    images = [SEGMENT_T.numpy() == image for image in (0, 1)]
    means = (
        [rpv[images[0] | images[1]].mean()] * 2 if tail_mean == "batch" else [rpv[i].mean() for i in images]
    )
    expected = sum((image & (rpv > mean)) for image, mean in zip(images, means, strict=True)).astype(bool)
    assert moe.route(hidden_TD, SEGMENT_T).is_tail_T.tolist() == expected.tolist()
    as_served = moe.eval().route(hidden_TD, SEGMENT_T).is_tail_T
    assert torch.equal(as_served, moe.train().route(hidden_TD, SEGMENT_T).is_tail_T) == (tail_mean == "image")


def neurons(expert: nn.Module) -> set[tuple[float, ...]]:
    return {tuple(row) for row in expert.get_parameter("fc1.weight").tolist()}


def test_every_expert_keeps_different_neurons() -> None:
    torch.manual_seed(0)
    dense = MoELLaVA(SMALL, SMALL_TOWER)
    (moe,) = start(dense, (1,), TRAINED["topk"]).moe_layers
    rows = neurons(dense.get_submodule("model.layers.1.mlp"))
    kept = [neurons(expert) & rows for expert in moe.get_submodule("experts.deepspeed_experts").children()]
    assert [len(own) for own in kept] == [SMALL.intermediate_size // 2] * 4
    assert kept[0] != kept[1]
