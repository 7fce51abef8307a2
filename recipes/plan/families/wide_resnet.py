"""Wide residual networks of bottleneck blocks.

Reference:
    Zagoruyko and Komodakis, "Wide Residual Networks", 2016; He et al., "Deep Residual Learning for
    Image Recognition", 2016, table 1; Zheng et al., "Alpa", 2022, table 7 (the sizes).
"""

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DEPTHS = {26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


@dataclasses.dataclass(frozen=True)
class WideResNetConfig:
    """
    depths: blocks in each of the groups of one resolution.
    base_channels: of the first group; they double with every group.
    width: how many times wider the inside of a bottleneck is, behind its 3x3 convolution.
    """

    depths: tuple[int, ...] = DEPTHS[50]
    base_channels: int = 160
    width: int = 2
    num_classes: int = 1024


class Bottleneck(nn.Module):
    """1x1 down, 3x3, 1x1 up, with batch norm, beside the identity or a projection."""

    def __init__(self, channels: int, base: int, width: int, stride: int) -> None:
        super().__init__()
        inner, out = base * width, base * 4
        self.conv1 = nn.Conv2d(channels, base, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(base)
        self.conv2 = nn.Conv2d(base, inner, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, out, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(out)
        self.project = None
        if stride != 1 or channels != out:
            self.project = nn.Conv2d(channels, out, 1, stride=stride, bias=False)
            self.project_norm = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        y = torch.relu(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        beside = x if self.project is None else self.project_norm(self.project(x))
        return torch.relu(y + beside)


class WideResNet(nn.Module):
    """Images [batch, 3, height, width] and labels [batch] to a cross entropy."""

    def __init__(self, config: WideResNetConfig) -> None:
        super().__init__()
        channels = config.base_channels
        self.stem = nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False)
        self.stem_norm = nn.BatchNorm2d(channels)
        groups = []
        for group, depth in enumerate(config.depths):
            base = config.base_channels * 2**group
            blocks = []
            for block in range(depth):
                stride = 2 if group and not block else 1
                blocks.append(Bottleneck(channels, base, config.width, stride))
                channels = 4 * base
            groups.append(nn.Sequential(*blocks))
        self.groups = nn.ModuleList(groups)
        self.head = nn.Linear(channels, config.num_classes)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        x = torch.relu(self.stem_norm(self.stem(images)))
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        for group in self.groups:
            x = group(x)
        return F.cross_entropy(self.head(x.mean((2, 3))), labels)
