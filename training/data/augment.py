"""Endless variants of a drawing: moved, turned, recoloured, blurred, on other grounds. Vectorised.

Shape legend: B pictures in a batch; C colour channels; H, W pixels.
"""

import torch
from torch import Tensor
from torch.nn import functional

_LUMA_C = torch.tensor([0.299, 0.587, 0.114])
_YIQ_CC = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])


def on_white(rgba_BHWC: Tensor, side: int, margin: float = 0.05) -> Tensor:
    """The plain view that scores are measured on: RGB `[B, 3, side, side]` in 0..1, on white, with a small
    margin.
    """
    scale_B = torch.full((len(rgba_BHWC),), 1 / (1 - 2 * margin))
    affine_B23 = torch.zeros(len(rgba_BHWC), 2, 3)
    affine_B23[:, 0, 0] = affine_B23[:, 1, 1] = scale_B
    rgb_BCHW, alpha_B1HW = _place(rgba_BHWC, affine_B23, side)
    return (rgb_BCHW + 1 - alpha_B1HW).clamp(0, 1)


class Augment:
    """Draws random variants from its own generator."""

    def __init__(self, seed: int) -> None:
        """Start the generator."""
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, rgba_BHWC: Tensor, side: int) -> Tensor:
        """One variant of each picture: RGB `[B, 3, side, side]` in 0..1."""
        rgb_BCHW, alpha_B1HW = _place(rgba_BHWC, self._affine(len(rgba_BHWC)), side)
        colour_BCHW = self._recolour(rgb_BCHW / alpha_B1HW.clamp(min=1e-3), len(rgba_BHWC)).clamp(0, 1)
        ground_BCHW = self._ground(len(rgba_BHWC), side)
        image_BCHW = colour_BCHW * alpha_B1HW + ground_BCHW * (1 - alpha_B1HW)
        return self._soften(image_BCHW).clamp(0, 1)

    def _uniform(self, count: int, low: float, high: float) -> Tensor:
        return torch.empty(count).uniform_(low, high, generator=self.generator)

    def _chance(self, count: int, probability: float) -> Tensor:
        return self._uniform(count, 0, 1) < probability

    def _affine(self, count: int) -> Tensor:
        """Scale, aspect, turn, shear, flip and shift, as `[B, 2, 3]` from output to input coordinates."""
        zoom_B = self._uniform(count, 0.95, 1.55)
        aspect_B = self._uniform(count, -0.12, 0.12).exp()
        angle_B = self._uniform(count, -0.35, 0.35) * self._chance(count, 0.7)
        shear_B = self._uniform(count, -0.15, 0.15) * self._chance(count, 0.5)
        flip_B = 1 - 2 * self._chance(count, 0.5).float()
        room_B = (zoom_B - 0.9).clamp(min=0.05)
        matrix_B22 = torch.stack(
            [angle_B.cos() * flip_B, -angle_B.sin() + shear_B, angle_B.sin() * flip_B, angle_B.cos()], -1
        ).view(-1, 2, 2)
        matrix_B22 = matrix_B22 * zoom_B[:, None, None] * torch.stack([aspect_B, 1 / aspect_B], -1)[:, None]
        shift_B2 = (
            torch.stack([self._uniform(count, -1, 1), self._uniform(count, -1, 1)], -1)
            * room_B[:, None]
            * 0.6
        )
        return torch.cat([matrix_B22, shift_B2[:, :, None]], dim=2)

    def _recolour(self, rgb_BCHW: Tensor, count: int) -> Tensor:
        """Turn the hue, change saturation, contrast and brightness; some pictures lose their colour."""
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

    def _ground(self, count: int, side: int) -> Tensor:
        """White half of the time, else a light, dark or coloured ground, plain or shaded from corner to
        corner.
        """
        first_BC = torch.rand(count, 3, generator=self.generator)
        pale_B = self._chance(count, 0.5)[:, None]
        first_BC = torch.where(pale_B, 1 - 0.25 * first_BC, first_BC)
        second_BC = torch.where(
            self._chance(count, 0.5)[:, None], first_BC, torch.rand(count, 3, generator=self.generator)
        )
        white_B = self._chance(count, 0.55)[:, None]
        first_BC, second_BC = (torch.where(white_B, 1.0, colour_BC) for colour_BC in (first_BC, second_BC))
        ramp_H = torch.linspace(0, 1, side)
        angle_B = self._uniform(count, 0, 1)[:, None, None]
        ramp_BHW = (ramp_H[:, None] * angle_B + ramp_H[None, :] * (1 - angle_B))[:, None]
        return first_BC[:, :, None, None] * (1 - ramp_BHW) + second_BC[:, :, None, None] * ramp_BHW

    def _soften(self, image_BCHW: Tensor) -> Tensor:
        """A third are blurred by up to three pixels' mean."""
        blurred_BCHW = functional.avg_pool2d(image_BCHW, 3, stride=1, padding=1, count_include_pad=False)
        amount_B = self._uniform(len(image_BCHW), 0, 1) * self._chance(len(image_BCHW), 0.33)
        return image_BCHW.lerp(blurred_BCHW, amount_B[:, None, None, None])


def _place(rgba_BHWC: Tensor, affine_B23: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Sample the drawings through an affine map: premultiplied RGB and alpha, `side` pixels wide."""
    image_BCHW = rgba_BHWC.permute(0, 3, 1, 2).float() / 255
    image_BCHW = torch.cat([image_BCHW[:, :3] * image_BCHW[:, 3:], image_BCHW[:, 3:]], dim=1)
    grid_BHW2 = functional.affine_grid(affine_B23, [len(image_BCHW), 4, side, side], align_corners=False)
    placed_BCHW = functional.grid_sample(image_BCHW, grid_BHW2, align_corners=False)
    return placed_BCHW[:, :3], placed_BCHW[:, 3:]
