"""Pictures of drawings: as they are, or in endless variants. A variant is moved, turned, recoloured, blurred
and on another ground. Vectorised.

Shape legend: B pictures in a batch; D drawings in them; C colour channels; H, W pixels; G cells a side of a
texture.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

_LUMA_C = torch.tensor([0.299, 0.587, 0.114])
_YIQ_CC = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])


def on_white(rgba_BHWC: Tensor, side: int, margin: float = 0.05) -> Tensor:
    """The plain view that scores are measured on: RGB `[B, 3, side, side]` in 0..1, on white, with a small
    margin.
    """
    white_BCHW = torch.ones(len(rgba_BHWC), 3, side, side)
    return plain(rgba_BHWC, side, Placed.alone(len(rgba_BHWC)), white_BCHW, margin)


@dataclass(frozen=True)
class Placed:
    """Which picture each drawing is in, and where."""

    picture_D: Tensor
    box_D3: Tensor
    """The middle, x and y from -1 to 1, and the size as a share of the picture's side."""
    is_word_D: Tensor
    """Words are not mirrored, and hardly turned."""

    @classmethod
    def alone(cls, count: int) -> "Placed":
        """`count` drawings, each as large as its picture."""
        box_D3 = torch.tensor([[0.0, 0.0, 1.0]]).expand(count, -1)
        return cls(torch.arange(count), box_D3, torch.zeros(count, dtype=torch.bool))


class Augment:
    """Draws random variants from its own generator."""

    def __init__(self, seed: int) -> None:
        """Start the generator."""
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(
        self, rgba_DHWC: Tensor, side: int, placed: Placed | None = None, textured: float = 0.0
    ) -> Tensor:
        """Pictures of one variant of each drawing: RGB `[B, 3, side, side]` in 0..1.

        Without `placed` each drawing has its own picture. `textured` is how often the ground has a texture.
        """
        placed = placed or Placed.alone(len(rgba_DHWC))
        rgba_DCHW = _channels_first(rgba_DHWC)
        rgba_DCHW[:, :3] = self._recolour(rgba_DCHW[:, :3]).clamp(0, 1)
        affine_D23 = _boxed(self._affine(placed), placed.box_D3)
        ground_BCHW = self.ground(int(placed.picture_D[-1]) + 1, side, textured)
        return self._soften(_compose(rgba_DCHW, affine_D23, placed.picture_D, ground_BCHW)).clamp(0, 1)

    def _uniform(self, count: int, low: float, high: float) -> Tensor:
        return torch.empty(count).uniform_(low, high, generator=self.generator)

    def _chance(self, count: int, probability: float) -> Tensor:
        return self._uniform(count, 0, 1) < probability

    def _affine(self, placed: Placed) -> Tensor:
        """Scale, aspect, turn, shear, flip and shift, as `[D, 2, 3]` from output to input coordinates."""
        count, is_word_D = len(placed.picture_D), placed.is_word_D
        zoom_D = self._uniform(count, 0.95, 1.55)
        aspect_D = self._uniform(count, -0.12, 0.12).exp()
        angle_D = self._uniform(count, -0.35, 0.35) * self._chance(count, 0.7)
        shear_D = self._uniform(count, -0.15, 0.15) * self._chance(count, 0.5)
        flip_D = 1 - 2 * self._chance(count, 0.5).float()
        zoom_D = torch.where(placed.box_D3[:, 2] < 1, 1 + 0.35 * (zoom_D - 1), zoom_D)  # small enough already
        angle_D = torch.where(is_word_D, 0.3 * angle_D, angle_D)
        flip_D = flip_D.masked_fill(is_word_D, 1)
        room_D = (zoom_D - 0.9).clamp(min=0.05)
        matrix_D22 = torch.stack(
            [angle_D.cos() * flip_D, -angle_D.sin() + shear_D, angle_D.sin() * flip_D, angle_D.cos()], -1
        ).view(-1, 2, 2)
        matrix_D22 = matrix_D22 * zoom_D[:, None, None] * torch.stack([aspect_D, 1 / aspect_D], -1)[:, None]
        shift_D2 = (
            torch.stack([self._uniform(count, -1, 1), self._uniform(count, -1, 1)], -1)
            * room_D[:, None]
            * 0.6
        )
        shift_D2 = torch.where(is_word_D[:, None], 0.2 * shift_D2, shift_D2)
        return torch.cat([matrix_D22, shift_D2[:, :, None]], dim=2)

    def _recolour(self, rgb_BCHW: Tensor) -> Tensor:
        """Turn the hue, change saturation, contrast and brightness; some drawings lose their colour."""
        count = len(rgb_BCHW)
        hue_B = self._uniform(count, -0.35, 0.35) + self._uniform(count, -3.14, 3.14) * self._chance(
            count, 0.15
        )
        strength_B = self._uniform(count, 0.6, 1.5) * ~self._chance(count, 0.06)
        turn_B33 = torch.zeros(count, 3, 3)
        turn_B33[:, 0, 0] = 1
        turn_B33[:, 1, 1] = turn_B33[:, 2, 2] = hue_B.cos() * strength_B
        turn_B33[:, 1, 2] = hue_B.sin() * strength_B
        turn_B33[:, 2, 1] = -turn_B33[:, 1, 2]
        mix_BCC = torch.linalg.inv(_YIQ_CC) @ turn_B33 @ _YIQ_CC
        contrast_B = self._uniform(count, 0.7, 1.25)[:, None]
        brightness_B = self._uniform(count, -0.15, 0.15)[:, None]
        flat_BCP = mix_BCC @ rgb_BCHW.flatten(2)
        luma_B1 = (_LUMA_C @ flat_BCP).mean(-1, keepdim=True)
        flat_BCP = (
            (flat_BCP - luma_B1[:, None]) * contrast_B[:, None] + luma_B1[:, None] + brightness_B[:, None]
        )
        return flat_BCP.view_as(rgb_BCHW)

    def ground(self, count: int, side: int, textured: float) -> Tensor:
        """White half of the time, else a light, dark or coloured ground, plain, shaded from corner to corner
        or, as often as `textured`, spotted or striped.
        """
        first_BC = torch.rand(count, 3, generator=self.generator)
        pale_B = self._chance(count, 0.5)[:, None]
        first_BC = torch.where(pale_B, 1 - 0.25 * first_BC, first_BC)
        other_BC = torch.rand(count, 3, generator=self.generator)
        has_texture_B = self._chance(count, textured)[:, None]
        is_plain_B = self._chance(count, 0.5)[:, None] & ~has_texture_B
        second_BC = torch.where(is_plain_B, first_BC, other_BC)
        white_B = self._chance(count, 0.55)[:, None] & ~has_texture_B
        first_BC, second_BC = (torch.where(white_B, 1.0, colour_BC) for colour_BC in (first_BC, second_BC))
        second_BC = torch.where(has_texture_B, first_BC.lerp(second_BC, 0.5), second_BC)
        ramp_H = torch.linspace(0, 1, side)
        angle_B = self._uniform(count, 0, 1)[:, None, None]
        ramp_BHW = ramp_H[:, None] * angle_B + ramp_H[None, :] * (1 - angle_B)
        if textured:
            texture_BHW = torch.where(
                self._chance(count, 0.5)[:, None, None], self._spots(count, side), self._stripes(ramp_BHW)
            )
            ramp_BHW = torch.where(has_texture_B[:, :, None], texture_BHW, ramp_BHW)
        return first_BC[:, :, None, None].lerp(second_BC[:, :, None, None], ramp_BHW[:, None])

    def _spots(self, count: int, side: int) -> Tensor:
        """Smoothed noise, coarse and fine."""
        coarse, fine = (
            functional.interpolate(
                torch.rand(count, 1, cells, cells, generator=self.generator), side, mode="bilinear"
            )[:, 0]
            for cells in (6, 20)
        )
        return (coarse + fine) / 2

    def _stripes(self, ramp_BHW: Tensor) -> Tensor:
        """Waves along the ramp."""
        waves_B = self._uniform(len(ramp_BHW), 3, 12)[:, None, None]
        return ((ramp_BHW * waves_B * 6.283).sin() + 1) / 2

    def _soften(self, image_BCHW: Tensor) -> Tensor:
        """A third are blurred by up to three pixels' mean."""
        blurred_BCHW = functional.avg_pool2d(image_BCHW, 3, stride=1, padding=1, count_include_pad=False)
        amount_B = self._uniform(len(image_BCHW), 0, 1) * self._chance(len(image_BCHW), 0.33)
        return image_BCHW.lerp(blurred_BCHW, amount_B[:, None, None, None])


def plain(rgba_DHWC: Tensor, side: int, placed: Placed, ground_BCHW: Tensor, margin: float = 0.05) -> Tensor:
    """The drawings as they are, on given grounds: RGB `[B, 3, side, side]` in 0..1."""
    affine_D23 = torch.zeros(len(rgba_DHWC), 2, 3)
    affine_D23[:, 0, 0] = affine_D23[:, 1, 1] = 1 / (1 - 2 * margin)
    affine_D23 = _boxed(affine_D23, placed.box_D3)
    return _compose(_channels_first(rgba_DHWC), affine_D23, placed.picture_D, ground_BCHW).clamp(0, 1)


def _boxed(affine_D23: Tensor, box_D3: Tensor) -> Tensor:
    """The same maps for pictures in which each drawing has a box."""
    matrix_D22 = affine_D23[:, :, :2] / box_D3[:, 2, None, None]
    shift_D2 = affine_D23[:, :, 2] - (matrix_D22 @ box_D3[:, :2, None])[:, :, 0]
    return torch.cat([matrix_D22, shift_D2[:, :, None]], dim=2)


def _channels_first(rgba_DHWC: Tensor) -> Tensor:
    """The drawings in 0..1."""
    return rgba_DHWC.permute(0, 3, 1, 2).float() / 255


def _compose(rgba_DCHW: Tensor, affine_D23: Tensor, picture_D: Tensor, ground_BCHW: Tensor) -> Tensor:
    """The drawings, sampled through affine maps, on their pictures' grounds."""
    side = ground_BCHW.shape[-1]
    alpha_D1HW = rgba_DCHW[:, 3:]
    drawn_DCHW = torch.cat([rgba_DCHW[:, :3] * alpha_D1HW, alpha_D1HW], dim=1)
    # A sampled point is between four pixels. A drawing that shrinks to less than half is blurred first.
    is_small_D = affine_D23[:, 0, :2].norm(dim=1) * drawn_DCHW.shape[-1] > 2 * side
    if is_small_D.any():
        drawn_DCHW[is_small_D] = functional.avg_pool2d(drawn_DCHW[is_small_D], 3, stride=1, padding=1)
    grid_DHW2 = functional.affine_grid(affine_D23, [len(drawn_DCHW), 4, side, side], align_corners=False)
    placed_DCHW = functional.grid_sample(drawn_DCHW, grid_DHW2, align_corners=False)
    count = len(ground_BCHW)
    placed_BCHW = placed_DCHW.new_zeros(count, 4, side, side).index_add(0, picture_D, placed_DCHW)
    return placed_BCHW[:, :3] + ground_BCHW * (1 - placed_BCHW[:, 3:].clamp(max=1))
