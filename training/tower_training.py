"""Stage 0, the eye: distils ImageNet features into the image tower, and trains it to classify emoji.

There are three losses on the tower's patch features: smooth L1 to the teacher's fine grid, for each token;
smooth L1 to its coarse grid, for the mean of each 2 × 2 tokens; cross-entropy of the emoji, for the mean of
the tokens that a drawing covers. More than half of the drawings fill their picture, a sixth are smaller, and
the others are in scenes of two to four.

Shape legend: B pictures, N tokens (8 × 8), M coarse places (4 × 4), V tower width, C channels, K drawings of
a picture, L labels.
"""

import math
import random
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from prismoe.training import teacher
from prismoe.training.data.augment import Augment
from prismoe.training.data.concepts import Concept
from prismoe.training.data.render import picture_of
from prismoe.training.data.scenes import (
    MOST_THINGS,
    SMALL,
    WITH_WORD,
    Known,
    Scene,
    laid_out,
    single,
    small,
)
from prismoe.training.model.tower import ImageTower, TowerConfig

IN_SCENES = 0.12
"""The share of the eye's pictures that are scenes."""
EMPTY = -100  # no label
ANYTHING = Concept("", "", "", ())
"""Scenes need a concept, and the eye none."""


class TowerSettings(BaseModel):
    """The settings of the tower's training."""

    model_config = ConfigDict(extra="forbid")

    rounds: int = 24  # in each, the teacher sees a new variant of every drawing
    steps_per_round: int = 230
    rounds_kept: int = 8
    batch: int = 128
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.05
    naming_weight: float = 0.3
    seed: int = 0


def normalise(image_BCHW: Tensor) -> Tensor:
    """Normalise RGB in 0..1 for the tower, with mean 0.5 and deviation 0.5 in each channel."""
    return image_BCHW * 2 - 1


class TowerClassifier(nn.Module):
    """The tower with heads that are only used in training."""

    def __init__(self, tower: ImageTower, labels: int) -> None:
        """`labels` is the number of emoji and concepts to classify."""
        super().__init__()
        width = tower.config.hidden_size
        self.tower = tower
        self.fine = nn.Linear(width, teacher.FINE_CHANNELS)
        self.coarse = nn.Linear(width, teacher.COARSE_CHANNELS)
        self.name = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, labels))

    def forward(self, image_BCHW: Tensor, covers_BKN: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Predicted `fine_BNC`, `coarse_BMC`, and the logits of each drawing's labels, `[B, K, L]`.

        `covers_BKN` says which tokens each drawing covers; its slots beyond a picture's drawings are empty.
        """
        x_BNV = self.tower(image_BCHW)
        side = math.isqrt(x_BNV.shape[1])
        grid_BVHW = x_BNV.transpose(1, 2).unflatten(2, (side, side))
        x_BMV = functional.avg_pool2d(grid_BVHW, 2).flatten(2).transpose(1, 2)
        share_BKN = covers_BKN.to(x_BNV.dtype) / covers_BKN.sum(dim=2, keepdim=True).clamp(min=1)
        return self.fine(x_BNV), self.coarse(x_BMV), self.name(share_BKN @ x_BNV)


class Shown(NamedTuple):
    """Pictures, what the teacher sees in them, and what their drawings are."""

    picture_BCHW: Tensor
    fine_BNC: Tensor
    coarse_BMC: Tensor
    covers_BKN: Tensor  # bool
    label_BK: Tensor  # EMPTY in the slots beyond a picture's drawings


class Pool:
    """A pool to sample from: the pictures of the last rounds with the teacher's features."""

    def __init__(
        self, rgba_NHWC: Tensor, label_N: Tensor, settings: TowerSettings, config: TowerConfig
    ) -> None:
        """`rgba_NHWC` are the training drawings. A drawing that is listed twice occurs twice in a round."""
        self.rgba_NHWC, self.label_N, self.settings, self.config = rgba_NHWC, label_N, settings, config
        self.teacher = teacher.Teacher()
        self.augment, self.draw = Augment(settings.seed), random.Random(settings.seed)
        self.scales: list[tuple[Tensor, Tensor]] = []  # mean and deviation of each channel, fine and coarse
        self.rounds: deque[Shown] = deque(maxlen=settings.rounds_kept)

    def refill(self) -> None:
        """Add a round with a new variant of every drawing."""
        scenes = eye_scenes(self.draw, self.draw.sample(range(len(self.rgba_NHWC)), len(self.rgba_NHWC)))
        views = []
        for first in range(0, len(scenes), self.settings.batch):
            batch = scenes[first : first + self.settings.batch]
            image_BCHW = picture_of(batch, self.rgba_NHWC, teacher.SIDE, self.augment)
            small_BCHW = functional.interpolate(image_BCHW, self.config.image_size, mode="area")
            pixels_BCHW = (small_BCHW * 255).round().byte()
            fine_BNC, coarse_BMC = self.teacher(image_BCHW)
            views.append(Shown(pixels_BCHW, fine_BNC, coarse_BMC, *self._covered(batch)))
        shown = Shown(*(torch.cat(parts) for parts in zip(*views, strict=True)))
        if not self.scales:
            self.scales = [
                (grid.float().mean((0, 1)), grid.float().std((0, 1)) + 1e-4)
                for grid in (shown.fine_BNC, shown.coarse_BMC)
            ]
        self.rounds.append(shown)

    def sample(self) -> Shown:
        """Pictures normalised for the tower, and standardised fine and coarse targets."""
        generator = self.augment.generator
        shown = self.rounds[int(torch.randint(len(self.rounds), (), generator=generator))]
        index_B = torch.randint(len(shown.picture_BCHW), (self.settings.batch,), generator=generator)
        picture_BCHW, fine_BNC, coarse_BMC, covers_BKN, label_BK = (part[index_B] for part in shown)
        fine_BNC, coarse_BMC = (
            (grid.float() - mean) / std
            for grid, (mean, std) in zip((fine_BNC, coarse_BMC), self.scales, strict=True)
        )
        return Shown(normalise(picture_BCHW.float() / 255), fine_BNC, coarse_BMC, covers_BKN, label_BK)

    def _covered(self, scenes: Sequence[Scene]) -> tuple[Tensor, Tensor]:
        """The tokens that each drawing covers, and its label."""
        side = math.isqrt(self.config.tokens)
        middle_S = (2 * torch.arange(side) + 1) / side - 1
        covers_BKSS = torch.zeros(len(scenes), MOST_THINGS, side, side, dtype=torch.bool)
        label_BK = torch.full((len(scenes), MOST_THINGS), EMPTY)
        for number, scene in enumerate(scenes):
            for slot, thing in enumerate(scene.things):
                x_S, y_S = ((middle_S - at).abs() <= thing.box.size for at in (thing.box.x, thing.box.y))
                covers_BKSS[number, slot] = y_S[:, None] & x_S[None, :]
                label_BK[number, slot] = self.label_N[thing.drawing]
        return covers_BKSS.flatten(2), label_BK


def eye_scenes(draw: random.Random, drawings: Sequence[int]) -> list[Scene]:
    """Every drawing once: by itself, whole or smaller, or in a scene with the next ones."""
    known = [Known(ANYTHING, drawing) for drawing in reversed(drawings)]
    scenes = []
    while known:
        lot, count = draw.random(), draw.randint(2, MOST_THINGS)
        if lot < IN_SCENES and len(known) >= count:
            scenes.append(laid_out(draw, count, known.pop, lambda _: known.pop(), draw.random() < WITH_WORD))
        elif lot < IN_SCENES + SMALL:
            scenes.append(small(draw, known.pop()))
        else:
            scenes.append(single(known.pop()))
    return scenes


def losses(eye: TowerClassifier, shown: Shown, settings: TowerSettings) -> dict[str, Tensor]:
    """The three losses, and their weighted sum under `total`."""
    with torch.autocast("cpu", torch.bfloat16):
        guess_fine_BNC, guess_coarse_BMC, logits_BKL = eye(shown.picture_BCHW, shown.covers_BKN)
    is_named_BK = shown.label_BK != EMPTY
    parts = {
        "fine": functional.smooth_l1_loss(guess_fine_BNC.float(), shown.fine_BNC),
        "coarse": functional.smooth_l1_loss(guess_coarse_BMC.float(), shown.coarse_BMC),
        "naming": functional.cross_entropy(
            logits_BKL[is_named_BK].float(), shown.label_BK[is_named_BK], label_smoothing=0.1
        ),
    }
    return parts | {"total": parts["fine"] + parts["coarse"] + settings.naming_weight * parts["naming"]}


def rate_share(progress: float) -> float:
    """The share of the learning rate: rises over 5% of the steps, stays, and falls over the last 45%."""
    return min(progress / 0.05, 1.0, (1 - progress) / 0.45) + 1e-3


def train_tower(eye: TowerClassifier, pool: Pool, settings: TowerSettings) -> list[dict[str, float]]:
    """Train the tower in place. Returns the mean losses of each round."""
    steps = settings.rounds * settings.steps_per_round
    optimizer = torch.optim.AdamW(
        eye.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_share(step / steps))
    curve = []
    progress = tqdm(total=steps, desc="eye")
    for _ in range(settings.rounds):
        pool.refill()
        sums: dict[str, float] = {}
        for _ in range(settings.steps_per_round):
            parts = losses(eye, pool.sample(), settings)
            optimizer.zero_grad()
            parts["total"].backward()
            nn.utils.clip_grad_norm_(eye.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            progress.update()
            for name, loss in parts.items():
                sums[name] = sums.get(name, 0.0) + loss.item() / settings.steps_per_round
        progress.set_postfix({name: f"{value:.3f}" for name, value in sums.items()})
        curve.append(sums)
    return curve
