"""Stage 0, the eye: distils ImageNet features into the image tower, and trains it to classify emoji.

There are three losses on the tower's patch features: smooth L1 to the teacher's fine grid, for each token;
smooth L1 to its coarse grid, for the mean of each 2 × 2 tokens; cross-entropy of the emoji, for the mean of
all tokens.

Shape legend: B pictures, N tokens (8 × 8), M coarse places (4 × 4), V tower width, C channels.
"""

import math
from collections import deque

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from prismoe.training import teacher
from prismoe.training.data.augment import Augment
from prismoe.training.model.tower import ImageTower


class TowerSettings(BaseModel):
    """The settings of the tower's training."""

    model_config = ConfigDict(extra="forbid")

    rounds: int = 9  # in each, the teacher sees a new variant of every drawing
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

    def forward(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Predicted `fine_BNC`, `coarse_BMC`, and the logits of the labels."""
        x_BNV = self.tower(image_BCHW)
        side = math.isqrt(x_BNV.shape[1])
        grid_BVHW = x_BNV.transpose(1, 2).unflatten(2, (side, side))
        x_BMV = functional.avg_pool2d(grid_BVHW, 2).flatten(2).transpose(1, 2)
        return self.fine(x_BNV), self.coarse(x_BMV), self.name(x_BNV.mean(1))


class Pool:
    """A pool to sample from: the pictures of the last rounds with the teacher's features."""

    def __init__(self, rgba_BHWC: Tensor, label_B: Tensor, settings: TowerSettings, side: int) -> None:
        """`rgba_BHWC` are the training drawings. A drawing that is listed twice occurs twice in a round."""
        self.rgba_BHWC, self.label_B, self.settings, self.side = rgba_BHWC, label_B, settings, side
        self.teacher = teacher.Teacher()
        self.augment = Augment(settings.seed)
        self.scales: list[tuple[Tensor, Tensor]] = []  # mean and deviation of each channel, fine and coarse
        self.rounds: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=settings.rounds_kept)

    def refill(self) -> None:
        """Add a round with a new variant of every drawing."""
        views = []
        for rgba_BHWC in self.rgba_BHWC.split(self.settings.batch):
            image_BCHW = self.augment(rgba_BHWC, teacher.SIDE)
            small_BCHW = functional.interpolate(image_BCHW, self.side, mode="area")
            views.append(((small_BCHW * 255).round().byte(), *self.teacher(image_BCHW)))
        picture_BCHW, fine_BNC, coarse_BMC = (torch.cat(parts) for parts in zip(*views, strict=True))
        if not self.scales:
            self.scales = [
                (grid.float().mean((0, 1)), grid.float().std((0, 1)) + 1e-4)
                for grid in (fine_BNC, coarse_BMC)
            ]
        self.rounds.append((picture_BCHW, fine_BNC, coarse_BMC))

    def sample(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Pictures normalised for the tower, standardised fine and coarse targets, and labels."""
        settings = self.settings
        generator = self.augment.generator
        picture_BCHW, *grids = self.rounds[int(torch.randint(len(self.rounds), (), generator=generator))]
        index_B = torch.randint(len(picture_BCHW), (settings.batch,), generator=generator)
        targets = [
            (grid[index_B].float() - mean) / std for grid, (mean, std) in zip(grids, self.scales, strict=True)
        ]
        return normalise(picture_BCHW[index_B].float() / 255), targets[0], targets[1], self.label_B[index_B]


def losses(
    eye: TowerClassifier, batch: tuple[Tensor, Tensor, Tensor, Tensor], settings: TowerSettings
) -> dict[str, Tensor]:
    """The three losses, and their weighted sum under `total`."""
    picture_BCHW, fine_BNC, coarse_BMC, label_B = batch
    with torch.autocast("cpu", torch.bfloat16):
        guess_fine_BNC, guess_coarse_BMC, logits_BL = eye(picture_BCHW)
    parts = {
        "fine": functional.smooth_l1_loss(guess_fine_BNC.float(), fine_BNC),
        "coarse": functional.smooth_l1_loss(guess_coarse_BMC.float(), coarse_BMC),
        "naming": functional.cross_entropy(logits_BL.float(), label_B, label_smoothing=0.1),
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
