"""A U-Net: down, up, and across.

Reference:
    Ronneberger et al., "U-Net: Convolutional Networks for Biomedical Image Segmentation", 2015.
"""

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """channels: at every resolution, the finest first; each is half as wide and high."""

    channels: tuple[int, ...] = (64, 128, 256, 512)
    in_channels: int = 3
    num_groups: int = 8


class DoubleConv(nn.Module):
    """Two 3x3 convolutions with group norm and SiLU."""

    def __init__(self, channels: int, out: int, num_groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.norm1 = nn.GroupNorm(num_groups, out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.norm2 = nn.GroupNorm(num_groups, out)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norm1(self.conv1(x)))
        return F.silu(self.norm2(self.conv2(x)))


class UNet(nn.Module):
    """Images [batch, channels, height, width] to images; the loss is their square distance."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        widths, groups = config.channels, config.num_groups
        before = (config.in_channels, *widths[:-1])
        self.down = nn.ModuleList(
            DoubleConv(i, o, groups) for i, o in zip(before, widths, strict=True)
        )
        pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.lift = nn.ModuleList(nn.ConvTranspose2d(i, o, 2, stride=2) for i, o in pairs)
        self.up = nn.ModuleList(DoubleConv(2 * o, o, groups) for _, o in pairs)
        self.head = nn.Conv2d(widths[0], config.in_channels, 1)

    def forward(self, images: Tensor, target: Tensor) -> Tensor:
        across, x = [], images
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else F.avg_pool2d(x, 2))
            across.append(x)
        across.pop()
        for lift, block in zip(self.lift, self.up, strict=True):
            x = block(torch.cat([lift(x), across.pop()], dim=1))
        return F.mse_loss(self.head(x), target)
