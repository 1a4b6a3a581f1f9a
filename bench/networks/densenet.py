"""`densenet-bc-100-12`: a densely connected network for CIFAR-size images, where every layer reads all before it.

Huang et al. 2017 (arXiv 1608.06993): depth 100, growth 12, bottlenecks and halving transitions; 769,162 parameters for
10 classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.networks._he import he_normal
from bench.networks._images import check_side

GROWTH, LAYERS, STAGES = 12, 16, 3
"""LAYERS: of each of the three stages, two convolutions each: (100 - 4) / 6."""

BOTTLENECK = 4 * GROWTH
SMALLEST = 4
"""Side of the smallest image that two poolings leave a pixel of."""


class DenseLayer(nn.Module):
    """Batch norm, ReLU, 1×1 convolution; batch norm, ReLU, 3×3 convolution to `GROWTH` further channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(channels, BOTTLENECK, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(BOTTLENECK)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(BOTTLENECK, GROWTH, 3, padding=1, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C + GROWTH, H, W)."""
        bottleneck = self.conv1(self.relu1(self.bn1(maps)))
        return torch.cat([maps, self.conv2(self.relu2(self.bn2(bottleneck)))], 1)


class Transition(nn.Sequential):
    """Half the channels, half the size."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(channels, channels // 2, 1, bias=False)
        self.pool = nn.AvgPool2d(2)


class DenseNet(nn.Module):
    """A 3×3 stem of 24 channels and three stages of 16 dense layers with transitions between them; a last batch norm
    and ReLU, and the mean over all places feeds the classifier `fc`. He-normal initialisation. Without dropout, as the
    paper trains with augmentation."""

    def __init__(self, input_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        check_side(input_shape, SMALLEST)
        channels = 2 * GROWTH
        self.conv1 = nn.Conv2d(input_shape[0], channels, 3, padding=1, bias=False)
        self.stages = nn.Sequential()
        for stage in range(STAGES):
            if stage > 0:
                self.stages.append(Transition(channels))
                channels //= 2
            for _ in range(LAYERS):
                self.stages.append(DenseLayer(channels))
                channels += GROWTH
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.mean = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        he_normal(self)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) → logits (N, classes)."""
        maps = self.relu(self.bn(self.stages(self.conv1(images))))
        return self.fc(torch.flatten(self.mean(maps), 1))


NETWORKS = {"densenet-bc-100-12": DenseNet}
