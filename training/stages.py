"""Trains the language model in stages: read, align, teach, upcycle.

In the stage read, the model learns the questions from text, with things' names in place of the picture. Then
follow MoE-LLaVA's three stages (Lin et al. 2024): align trains only the projector; teach trains the dense
model with pictures; upcycle copies its MLPs into experts, and trains them and their routers by
`RouterSettings`.
"""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from prismoe.training.data.augment import Augment
from prismoe.training.data.batches import IGNORED, Batch, Composer
from prismoe.training.data.concepts import CONCEPT_BY_EMOJI, Concept
from prismoe.training.data.pictures import Drawing
from prismoe.training.data.render import picture_of
from prismoe.training.data.scenes import Known, Scene, any_scene
from prismoe.training.model.moe_llava import LayerDecision, MoELLaVA
from prismoe.training.router_settings import RouterSettings
from prismoe.training.router_training import RouterTraining, router_training
from prismoe.training.tower_training import normalise

Stage = Literal["read", "align", "teach", "upcycle"]
Watch = Callable[[int, Mapping[str, Tensor], Sequence[LayerDecision]], None]
RENDER_SIDE = 128  # drawings are varied at this size, then shrunk to the tower's


class StageSettings(BaseModel):
    """One stage: its length, and the learning rates of the model's three parts (0 freezes a part)."""

    model_config = ConfigDict(extra="forbid")

    steps: int
    language_rate: float = 0.0
    projector_rate: float = 0.0
    tower_rate: float = 0.0
    batch: int = 32
    weight_decay: float = 0.05
    router: RouterSettings | None = None
    """None for the settings of the routing policy's paper."""


class PictureSource:
    """An endless source of augmented pictures of scenes. The known concepts are equally frequent in them."""

    def __init__(
        self, drawings: list[Drawing], rgba_NHWC: Tensor, indices: Iterable[int], side: int, seed: int
    ) -> None:
        """Use the drawings at `indices`; `side` is the tower's picture size."""
        self.rgba_NHWC, self.side = rgba_NHWC, side
        self.augment, self.draw = Augment(seed), random.Random(seed)
        self.by_concept: dict[Concept, list[int]] = {}
        for index in indices:
            if concept := CONCEPT_BY_EMOJI.get(drawings[index].emoji):
                self.by_concept.setdefault(concept, []).append(index)
        self.concepts = list(self.by_concept)

    def scenes(self, count: int) -> list[Scene]:
        """Draw scenes at random."""
        return [any_scene(self.draw, self._another, self._again) for _ in range(count)]

    def pictures(self, scenes: list[Scene]) -> Tensor:
        """An augmented picture of each scene, normalised for the tower."""
        image_BCHW = picture_of(scenes, self.rgba_NHWC, RENDER_SIDE, self.augment)
        return normalise(functional.interpolate(image_BCHW, self.side, mode="area"))

    def _another(self) -> Known:
        return self._again(self.draw.choice(self.concepts))

    def _again(self, concept: Concept) -> Known:
        return Known(concept, self.draw.choice(self.by_concept[concept]))


def parameter_groups(model: MoELLaVA, settings: StageSettings) -> list[dict[str, Any]]:
    """The parameters to train with their rates. Freezes the others."""
    decoder = model.model
    parts = {"tower": decoder.image_tower, "projector": decoder.mm_projector}
    taken = {id(p) for part in parts.values() for p in part.parameters()}
    rates = {"tower": settings.tower_rate, "projector": settings.projector_rate}
    groups: list[tuple[float, list[nn.Parameter]]] = [
        (rates[n], list(part.parameters())) for n, part in parts.items()
    ]
    groups.append((settings.language_rate, [p for p in model.parameters() if id(p) not in taken]))
    for rate, parameters in groups:
        for parameter in parameters:
            parameter.requires_grad_(rate > 0)
    return [{"params": parameters, "lr": rate} for rate, parameters in groups if rate > 0]


def train_stage(
    stage: Stage,
    model: MoELLaVA,
    source: PictureSource,
    composer: Composer,
    settings: StageSettings,
    watch: Watch | None = None,
) -> list[dict[str, float]]:
    """Train the model in place. Returns the smoothed losses of every 50th step. After each step, `watch` gets
    its number, its losses and its routings.
    """
    routers = [router_training(moe, settings.router) for moe in model.moe_layers]
    groups = parameter_groups(model, settings)
    own = [parameter for router in routers for parameter in router.parameters()]
    groups.append({"params": own, "lr": settings.language_rate})
    optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay, fused=True)
    rates = [group["lr"] for group in groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rates, total_steps=settings.steps, pct_start=0.1
    )
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    curve: list[dict[str, float]] = []
    smooth: dict[str, float] = {}
    for step in (progress := tqdm(range(1, settings.steps + 1), desc=stage)):
        batch = _batch(stage, model, source, composer, settings.batch)
        if step == 1:
            prepare_routers(model, routers, *batch)
        losses, routings = batch_losses(model, routers, *batch)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        for router, moe, routing in zip(routers, model.moe_layers, routings, strict=True):
            router.after_step(moe, routing)
        if watch:
            watch(step, losses, routings)
        smooth = {
            name: smooth.get(name, loss.item()) * 0.98 + loss.item() * 0.02 for name, loss in losses.items()
        }
        if step % 50 == 0:
            progress.set_postfix({name: f"{value:.4f}" for name, value in smooth.items()})
            curve.append({"step": step, **smooth})
    return curve


def _batch(
    stage: Stage, model: MoELLaVA, source: PictureSource, composer: Composer, batch: int
) -> tuple[Tensor, Batch]:
    """Pictures and questions about them. The stage read has no pictures."""
    scenes = source.scenes(batch)
    if stage == "read":
        return torch.empty(0), composer.words(scenes)
    compose = composer.requests if model.routes_requests else composer.pictures
    return source.pictures(scenes), compose(scenes)


@torch.no_grad()
def prepare_routers(
    model: MoELLaVA, routers: Iterable[RouterTraining], image_BCHW: Tensor, batch: Batch
) -> None:
    """Initialise each layer's router from the layer's inputs in a batch, from the first layer to the last."""
    for layer, (router, moe) in enumerate(zip(routers, model.moe_layers, strict=True)):
        _, routings = model(image_BCHW, batch.tokens)
        router.prepare(moe, routings[layer])


def batch_losses(
    model: MoELLaVA, routers: Iterable[RouterTraining], image_BCHW: Tensor, batch: Batch
) -> tuple[dict[str, Tensor], list[LayerDecision]]:
    """The losses of a batch, and the decisions of the MoE layers.

    The losses are the answers' next-token loss (LTDR, Eq. 5) and, for a model with experts, the sum of the
    routers' losses over its MoE layers.
    """
    selected_BS = batch.target_BS != IGNORED
    with torch.autocast("cpu", torch.bfloat16):
        logits_WY, routings = model(image_BCHW, batch.tokens, selected_BS)
    losses = {"answer": functional.cross_entropy(logits_WY.float(), batch.target_BS[selected_BS])}
    if routings:
        gradients = token_gradients(losses["answer"], routers, routings)
        layers = zip(routers, model.moe_layers, routings, gradients, strict=True)
        losses["router"] = torch.stack([router.loss(*layer) for router, *layer in layers]).sum()
    return losses, routings


def token_gradients(
    answer_loss: Tensor, routers: Iterable[RouterTraining], routings: list[LayerDecision]
) -> list[Tensor | None]:
    """The gradient of the answers' loss with respect to each MoE layer's output; None if no loss needs it."""
    if not any(router.settings.conflict for router in routers):
        return [None] * len(routings)
    outputs = [routing.output_TD for routing in routings if routing.output_TD is not None]
    return list(torch.autograd.grad(answer_loss, outputs, retain_graph=True))
