"""The start of every router: the recipe's dense model, with its MLPs made into experts that differ.

Plain copies of one MLP would give the same answers under any router. So a share of each expert's neurons
starts anew, and each expert has other ones (Drop-Upcycling, Nakamura et al. 2025, arXiv 2502.19261).

Shape legend: that of kernels/routing.py.
"""

import torch
from torch import Tensor, nn

from prismoe.kernels.routing import TEXT
from prismoe.model_plugins.routing.request_policy import NO_TASK, Requests
from prismoe.training.comparison.contenders import Trained
from prismoe.training.model.moe_llava import MLP, Asked, DeepSpeedMoE, MoELLaVA

ANEW = 0.5
"""The share of an expert's neurons that start anew; the paper's best."""
TEMPERATURE = 0.07
"""X-MoE's at the start."""


def start(dense: MoELLaVA, moe_layers: tuple[int, ...], contender: Trained) -> MoELLaVA:
    """The model that a contender trains."""
    torch.manual_seed(contender.seed)
    changes = {"moe_layers": moe_layers, **contender.model_dump(exclude={"seed", "training"})}
    sparse = MoELLaVA(dense.config.model_copy(update=changes), dense.model.image_tower.image_tower.config)
    missing, left_over = sparse.load_state_dict(dense.state_dict(), strict=False)
    assert all(".deepspeed_moe." in name for name in missing)
    assert all(".mlp.fc" in name for name in left_over)
    for layer, moe in zip(moe_layers, sparse.moe_layers, strict=True):
        start_router(moe.router)
        mlp = dense.model.layers[layer].mlp
        assert isinstance(mlp, MLP)
        total_weight = mean_total_weight(moe)
        for expert in moe.experts.deepspeed_experts:
            assert isinstance(expert, MLP)
            start_expert(expert, mlp, total_weight)
    return sparse


@torch.no_grad()
def start_router(router: nn.ParameterDict) -> None:
    """Parameters that prefer no expert yet. Mixtures and centroids are fitted before the first step."""
    for name, parameter in router.items():
        match name:
            case "modality_bias" | "expert_bias" | "thresholds":
                parameter.zero_()
            case "temperature":
                parameter.fill_(TEMPERATURE)
            case "weight" | "modality_weight" | "modality_embedding" | "task_logits":
                parameter.normal_(std=0.02)
            case "cluster_embeddings":
                parameter.normal_()
            case "projection":
                parameter.normal_(std=parameter.shape[1] ** -0.5)
            case "expert_embeddings":
                parameter.copy_(nn.functional.normalize(torch.randn(parameter.shape), dim=1))


@torch.no_grad()
def mean_total_weight(moe: DeepSpeedMoE, tokens: int = 256) -> float:
    """The mean sum of the weights of a token's experts, over random text tokens. Each is its own request."""
    hidden_TD = torch.randn(tokens, moe.hidden_size)
    asked = Asked(Requests(torch.full((tokens,), NO_TASK), hidden_TD), torch.arange(tokens))
    routing = moe.route(hidden_TD, torch.full((tokens,), TEXT), asked)
    return routing.weights_TA.sum(dim=1).mean().item()


@torch.no_grad()
def start_expert(expert: MLP, dense: MLP, total_weight: float) -> None:
    """Some of the dense layer's neurons, and for the others noise of its weights' deviation.

    The output is scaled for an expert that has fewer neurons than the dense layer, and for weights that sum
    to another number than 1.
    """
    width, dense_width = expert.fc1.out_features, dense.fc1.out_features
    neurons = torch.randperm(dense_width)[:width]
    is_new = torch.arange(width) < ANEW * width
    inner, outer = dense.fc1.weight[neurons], dense.fc2.weight[:, neurons]
    expert.fc1.weight.copy_(torch.where(is_new[:, None], _noise(inner), inner))
    expert.fc1.bias.copy_(torch.where(is_new, 0, dense.fc1.bias[neurons]))
    expert.fc2.weight.copy_(torch.where(is_new, _noise(outer), outer) * (dense_width / width / total_weight))
    expert.fc2.bias.copy_(dense.fc2.bias / total_weight)


def _noise(weight: Tensor) -> Tensor:
    return torch.randn(weight.shape) * weight.std()
