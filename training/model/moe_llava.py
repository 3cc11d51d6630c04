"""MoE-LLaVA on Phi in plain PyTorch, with the tensor names of the original's checkpoints (Lin et al. 2024).

Attention and MLP of a block run in parallel, on the same LayerNorm of the block's input. A layer's MLP is
dense, or a mixture of experts that is routed by a policy of prismoe.model_plugins.routing, as in serving.

Shape legend: that of kernels/routing.py, plus B sequences, S positions, P pictures, N image tokens, V tower
width, Y vocabulary, R requests.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn import functional

from prismoe.kernels.routing import TEXT
from prismoe.model_plugins.routing.policy import RouterInputs, RoutingPolicy
from prismoe.model_plugins.routing.registry import choose_routing
from prismoe.model_plugins.routing.request_policy import NO_TASK, RequestPolicy, Requests
from prismoe.training.model.tower import ImageTower, TowerConfig, attend
from prismoe.training.model.trainable_routing import probabilities, trainable_weights


class ModelConfig(BaseModel):
    """The fields of the checkpoint's `config.json` that shape the network."""

    model_config = ConfigDict(extra="forbid")

    vocab_size: int
    hidden_size: int = 192
    intermediate_size: int = 768
    num_hidden_layers: int = 4
    num_attention_heads: int = 6
    partial_rotary_factor: float = 0.5
    rope_theta: float = 10000.0
    layer_norm_eps: float = 1e-5
    mm_vision_select_layer: int = -1
    moe_layers: tuple[int, ...] = ()  # empty: the dense model
    experts: int = 4
    expert_width: int | None = None  # None: as wide as a dense layer
    top_k: int = 2
    routing: Mapping[str, Any] = {"policy": "ltdr", "tail_experts": 4, "norm_topk_prob": True}

    def policy(self, layer: int) -> RoutingPolicy:
        """The policy of a MoE layer, read from `prismoe_routing` as in a server."""
        experts_by_layer = dict.fromkeys(self.moe_layers, self.experts)
        return choose_routing(None, self.routing, self.top_k, experts_by_layer).layers[layer].policy


class Prompts(NamedTuple):
    """The inputs of a router that decides once for each request. Each sequence is one request."""

    task_B: Tensor  # int64: the request's task label, or NO_TASK
    is_instruction_BS: Tensor  # bool: the prompt's text, without the answer


@dataclass(frozen=True)
class Tokens:
    """A batch of sequences.

    `segment_BS` is the index of the token's picture in the batch, TEXT or PADDING. `mask_BSS` is true for the
    keys that a query may see. `prompts` is None if a sequence holds several requests.
    """

    token_BS: Tensor
    position_BS: Tensor
    segment_BS: Tensor
    mask_BSS: Tensor
    prompts: Prompts | None = None

    def requests(self, embeds_BSD: Tensor) -> Requests | None:
        """The requests in the form that a server passes to a router, from the embeddings of `token_BS`."""
        if self.prompts is None:
            return None
        task_B, is_instruction_BS = self.prompts
        length_B1 = is_instruction_BS.sum(dim=1, keepdim=True).clamp(min=1)
        instruction_BD = (embeds_BSD.float() * is_instruction_BS[:, :, None]).sum(dim=1) / length_B1
        return Requests(task_B, instruction_BD)


class Asked(NamedTuple):
    """The requests of a step's tokens."""

    requests: Requests
    request_T: Tensor  # int64


@dataclass(frozen=True)
class LayerDecision:
    """The decision of one MoE layer for the batch's tokens, flattened to T, and its inputs."""

    probs_TE: Tensor  # of the experts that the router chooses from
    experts_TA: Tensor
    weights_TA: Tensor
    is_tail_T: Tensor
    step: RouterInputs
    asked: Asked | None
    logits_TE: Tensor | None = None  # set if the probabilities are a softmax of these
    output_TD: Tensor | None = None  # the layer's output

    @property
    def segment_T(self) -> Tensor:
        """The tokens' segments, as in `Tokens`."""
        return self.step.segment_T


class Rotary(nn.Module):
    """Rotary positions on the first part of each head (Su et al. 2021; Phi's `partial_rotary_factor`)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        head_width = config.hidden_size // config.num_attention_heads
        self.width = int(head_width * config.partial_rotary_factor)
        powers = torch.arange(0, self.width, 2).float() / self.width
        self.frequency: Tensor
        self.register_buffer("frequency", config.rope_theta**-powers, persistent=False)

    def forward(self, x_BHSD: Tensor, position_BS: Tensor) -> Tensor:
        angle_B1SD = (position_BS[:, None, :, None].float() * self.frequency).repeat(1, 1, 1, 2)
        turned, rest = x_BHSD[..., : self.width].float(), x_BHSD[..., self.width :]
        first, second = turned.chunk(2, dim=-1)
        turned = turned * angle_B1SD.cos() + torch.cat([-second, first], dim=-1) * angle_B1SD.sin()
        return torch.cat([turned.to(rest.dtype), rest], dim=-1)


class Attention(nn.Module):
    """Multi-head self-attention under the batch's mask."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.rotary = Rotary(config)
        self.q_proj, self.k_proj, self.v_proj, self.dense = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x_BSD: Tensor, position_BS: Tensor, bias_B1SS: Tensor) -> Tensor:
        query, key, value = (
            projection(x_BSD).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = self.rotary(query, position_BS), self.rotary(key, position_BS)
        mixed_BHSD = attend(query, key, value, bias_B1SS.to(value.dtype))
        return self.dense(mixed_BHSD.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two linear maps around GELU in its tanh form (`gelu_new`); an expert has the same shape."""

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, width)
        self.fc2 = nn.Linear(width, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(x), approximate="tanh"))


class Gate(nn.Module):
    """The router's weight, under DeepSpeed's name."""

    def __init__(self, hidden_size: int, rows: int) -> None:
        super().__init__()
        self.wg = nn.Linear(hidden_size, rows, bias=False)
        nn.init.normal_(self.wg.weight, std=0.02)


class Experts(nn.Module):
    """The experts, under DeepSpeed's name."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.expert_width or config.intermediate_size
        self.deepspeed_experts = nn.ModuleList(MLP(config.hidden_size, width) for _ in range(config.experts))


class DeepSpeedMoE(nn.Module):
    """A MoE layer: it routes each token, runs its experts, and sums their outputs by weight.

    `router` holds the policy's own parameters, under the same name as in a checkpoint. With `mean_over_batch`
    a policy that compares the tokens of an image compares those of all images of the batch, in training mode
    only: LTDR routes "at each batch" (Sec. 4.1), which a server can't.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.policy = config.policy(layer)
        self.num_experts, self.hidden_size = config.experts, config.hidden_size
        self.mean_over_batch = False
        if rows := self.policy.gate_rows(config.experts):
            self.gate = Gate(config.hidden_size, rows)
        self.experts = Experts(config)
        shapes = self.policy.parameters(config.hidden_size, config.experts)
        self.router = nn.ParameterDict(
            {name: nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()}
        )

    def route(self, x_TD: Tensor, segment_T: Tensor, asked: Asked | None = None) -> LayerDecision:
        """Route in float32, outside autocast. A `RequestPolicy` needs `asked`."""
        with torch.autocast(x_TD.device.type, enabled=False):
            hidden_TD = x_TD.float()
            own = {name: parameter.float() for name, parameter in self.router.items()}
            logits_TE = self._logits(hidden_TD, own, asked)
            no_settings_T2 = torch.zeros(len(x_TD), 2, dtype=torch.int32)
            step = RouterInputs(hidden_TD, logits_TE, segment_T, no_settings_T2, own, self.num_experts)
            compared_T = segment_T.clamp(max=0) if self.mean_over_batch and self.training else segment_T
            routing = self.policy.route(step._replace(segment_T=compared_T))
            weights_TA = trainable_weights(self.policy, step, routing)
            probs_TE = probabilities(self.policy, step, routing)
        own_TE = None if routing.confidence is None else routing.confidence.logits_TE
        return LayerDecision(probs_TE, routing.experts_TA, weights_TA, routing.tail_T, step, asked, own_TE)

    def _logits(self, hidden_TD: Tensor, own: Mapping[str, Tensor], asked: Asked | None) -> Tensor:
        """The gate's logits, or the logits of each token's request."""
        if isinstance(self.policy, RequestPolicy):
            if asked is None:
                raise ValueError(
                    f"{self.policy.policy} decides once for each request: put each request into its own "
                    "sequence, and set Tokens.prompts."
                )
            return self.policy.request_logits(asked.requests, own, self.num_experts)[asked.request_T]
        has_gate = self.policy.gate_rows(self.num_experts) > 0
        return functional.linear(hidden_TD, self.gate.wg.weight.float()) if has_gate else hidden_TD[:, :0]

    def forward(
        self, x_TD: Tensor, segment_T: Tensor, asked: Asked | None = None
    ) -> tuple[Tensor, LayerDecision]:
        routing = self.route(x_TD, segment_T, asked)
        weights_TE = routing.weights_TA.new_zeros(len(x_TD), self.num_experts).scatter_add(
            1, routing.experts_TA, routing.weights_TA
        )
        y_TD = torch.zeros_like(x_TD)
        for expert, mlp in enumerate(self.experts.deepspeed_experts):
            rows = (weights_TE[:, expert] > 0).nonzero().squeeze(1)
            out = mlp(x_TD[rows]) * weights_TE[rows, expert, None].to(x_TD.dtype)
            y_TD = y_TD.index_add(0, rows, out.to(y_TD.dtype))
        return y_TD, replace(routing, output_TD=y_TD)


class MoE(nn.Module):
    """A wrapper for the middle part of DeepSpeed's tensor names."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.deepspeed_moe = DeepSpeedMoE(config, layer)

    def forward(
        self, x_BSD: Tensor, segment_BS: Tensor, requests: Requests | None
    ) -> tuple[Tensor, LayerDecision]:
        batch, length = segment_BS.shape
        request_T = torch.arange(batch).repeat_interleave(length)
        asked = None if requests is None else Asked(requests, request_T)
        y_TD, routing = self.deepspeed_moe(x_BSD.flatten(0, 1), segment_BS.flatten(), asked)
        return y_TD.view_as(x_BSD), routing


class Block(nn.Module):
    """Attention and MLP in parallel on one LayerNorm."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = Attention(config)
        is_moe = layer in config.moe_layers
        self.mlp = MoE(config, layer) if is_moe else MLP(config.hidden_size, config.intermediate_size)

    def forward(
        self, x_BSD: Tensor, tokens: Tokens, bias_B1SS: Tensor, requests: Requests | None
    ) -> tuple[Tensor, LayerDecision | None]:
        normed_BSD = self.input_layernorm(x_BSD)
        attended_BSD = self.self_attn(normed_BSD, tokens.position_BS, bias_B1SS)
        if isinstance(self.mlp, MoE):
            fed_BSD, routing = self.mlp(normed_BSD, tokens.segment_BS, requests)
        else:
            fed_BSD, routing = self.mlp(normed_BSD), None
        return x_BSD + attended_BSD + fed_BSD, routing


class Projector(nn.Module):
    """`mlp2x_gelu`: from the tower's width to the language model's."""

    def __init__(self, tower_width: int, width: int) -> None:
        super().__init__()
        self.image_spatial_proj = nn.Sequential(
            nn.Linear(tower_width, width), nn.GELU(), nn.Linear(width, width)
        )

    def forward(self, x_BNV: Tensor) -> Tensor:
        return self.image_spatial_proj(x_BNV)


class TowerHolder(nn.Module):
    """A wrapper for the middle part of the tower's tensor names."""

    def __init__(self, tower: ImageTower) -> None:
        super().__init__()
        self.image_tower = tower

    def forward(self, image_BCHW: Tensor) -> Tensor:
        return self.image_tower(image_BCHW)


class Decoder(nn.Module):
    """Everything below the language-model head."""

    def __init__(self, config: ModelConfig, tower: ImageTower) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        nn.init.normal_(self.embed_tokens.weight, std=0.02)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.final_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mm_projector = Projector(tower.config.hidden_size, config.hidden_size)
        self.image_tower = TowerHolder(tower)


class MoELLaVA(nn.Module):
    """The whole model: pictures and tokens in, logits of the next token and each MoE layer's routing out."""

    def __init__(self, config: ModelConfig, tower_config: TowerConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config, ImageTower(tower_config, config.mm_vision_select_layer))
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def moe_layers(self) -> list[DeepSpeedMoE]:
        """The MoE layers in order."""
        return [block.mlp.deepspeed_moe for block in self.model.layers if isinstance(block.mlp, MoE)]

    @property
    def routes_requests(self) -> bool:
        """Whether a router decides once for each request, so that each request needs its own sequence."""
        return any(isinstance(moe.policy, RequestPolicy) for moe in self.moe_layers)

    def forward(
        self, image_BCHW: Tensor, tokens: Tokens, selected_BS: Tensor | None = None
    ) -> tuple[Tensor, list[LayerDecision]]:
        """`image_BCHW` has the pictures that the segments are indices of, normalised for the tower.

        The logits are `[B, S, Y]`, or `[W, Y]` for the W positions that are true in `selected_BS`.
        """
        x_BSD = self.model.embed_tokens(tokens.token_BS)
        requests = tokens.requests(x_BSD)
        if len(image_BCHW):
            vision_PND = self.model.mm_projector(self.model.image_tower(image_BCHW))
            is_vision_BS = tokens.segment_BS >= 0
            shown_P = tokens.segment_BS[is_vision_BS][
                :: vision_PND.shape[1]
            ]  # a picture can occur more than once
            x_BSD = x_BSD.masked_scatter(is_vision_BS[:, :, None], vision_PND[shown_P].to(x_BSD.dtype))
        bias_B1SS = torch.zeros(tokens.mask_BSS.shape).masked_fill(~tokens.mask_BSS, -1e4)[:, None]
        if torch.is_autocast_enabled("cpu"):
            bias_B1SS = bias_B1SS.bfloat16()
        routings = []
        for block in self.model.layers:
            x_BSD, routing = block(x_BSD, tokens, bias_B1SS, requests)
            if routing is not None:
                routings.append(routing)
        hidden = x_BSD if selected_BS is None else x_BSD[selected_BS]
        return self.lm_head(self.model.final_layernorm(hidden)), routings


def upcycle(dense: MoELLaVA, moe_layers: tuple[int, ...]) -> MoELLaVA:
    """Sparse upcycling (Komatsuzaki et al. 2023): each expert is a copy of the dense MLP, routers are new."""
    sparse = MoELLaVA(
        dense.config.model_copy(update={"moe_layers": moe_layers}), dense.model.image_tower.image_tower.config
    )
    weights = dense.state_dict()
    for layer in moe_layers:
        for part in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"):
            weight = weights.pop(f"model.layers.{layer}.mlp.{part}")
            moe = f"model.layers.{layer}.mlp.deepspeed_moe"
            weights |= {
                f"{moe}.experts.deepspeed_experts.{e}.{part}": weight for e in range(sparse.config.experts)
            }
    missing, unexpected = sparse.load_state_dict(weights, strict=False)
    assert not unexpected and all(name.endswith("gate.wg.weight") for name in missing)
    return sparse


def prompt_tokens(
    token_BS: Tensor, image_token: int, task_B: Tensor | None = None, answered: int = 0
) -> Tokens:
    """Prompts of the same length as a causal batch. Each run of `image_token` is one picture.

    `task_B` are the prompts' task labels. The last `answered` tokens of each prompt are its answer so far.
    """
    is_vision_BS = token_BS == image_token
    starts_BS = is_vision_BS & ~functional.pad(is_vision_BS, (1, -1))
    picture_BS = starts_BS.flatten().cumsum(0).view_as(token_BS) - 1
    batch, length = token_BS.shape
    is_prompt_S = torch.arange(length) < length - answered
    prompts = Prompts(
        torch.full((batch,), NO_TASK) if task_B is None else task_B, ~is_vision_BS & is_prompt_S
    )
    return Tokens(
        token_BS=token_BS.masked_fill(is_vision_BS, 0),
        position_BS=torch.arange(length).expand_as(token_BS),
        segment_BS=torch.where(is_vision_BS, picture_BS, TEXT),
        mask_BSS=torch.ones(length, length).tril().bool().expand(batch, -1, -1),
        prompts=prompts,
    )


@torch.inference_mode()
def generate(
    model: MoELLaVA,
    image_BCHW: Tensor,
    token_BS: Tensor,
    image_token: int,
    end: int,
    limit: int,
    task_B: Tensor | None = None,
) -> Tensor:
    """Greedy continuations `[B, ≤ limit]` of prompts of the same length; `end` is followed only by `end`."""
    done_B = torch.zeros(len(token_BS), dtype=torch.bool)
    start = token_BS.shape[1]
    while (answered := token_BS.shape[1] - start) < limit and not done_B.all():
        logits_BSY, _ = model(image_BCHW, prompt_tokens(token_BS, image_token, task_B, answered))
        next_B = logits_BSY[:, -1].argmax(-1).masked_fill(done_B, end)
        done_B |= next_B == end
        token_BS = torch.cat([token_BS, next_B[:, None]], dim=1)
    return token_BS[:, start:]
