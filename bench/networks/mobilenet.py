"""`mobilenetv2` for CIFAR-size images: depthwise convolutions between a wide and a narrow 1×1 one.

Sandler et al. 2018 (arXiv 1801.04381), table 2, with the strides of the first two stages at 1, as 32×32 leaves little
to halve: three halvings in place of five. 2,236,682 parameters for 10 classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.networks._he import he_normal
from bench.networks._images import check_side

STEM, LAST = 32, 1280
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""(expansion, channels, blocks, stride of the first block)."""

SMALLEST = 8
"""Side of the smallest image that three strides of 2 leave a pixel of."""


def _normalised(channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution and its batch norm."""
    conv = nn.Conv2d(channels, out, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(out)]


class InvertedResidual(nn.Module):
    """1×1 convolution to `expansion` times the channels (none at 1), depthwise 3×3, 1×1 back without activation; added
    to the stream where its shape stays."""

    def __init__(self, expansion: int, channels: int, out: int, stride: int) -> None:
        super().__init__()
        wide = expansion * channels
        expand = [*_normalised(channels, wide, 1), nn.ReLU6()] if expansion > 1 else []
        depthwise = [*_normalised(wide, wide, 3, stride, groups=wide), nn.ReLU6()]
        self.branch = nn.Sequential(*expand, *depthwise, *_normalised(wide, out, 1))
        self.adds = stride == 1 and channels == out

    def forward(self, maps: Tensor) -> Tensor:
        """(N, C, H, W) → (N, out, ⌈H/stride⌉, ⌈W/stride⌉)."""
        return maps + self.branch(maps) if self.adds else self.branch(maps)


class MobileNetV2(nn.Module):
    """A 3×3 stem, 17 inverted residual blocks, a 1×1 convolution to 1280 channels; the mean over all places feeds the
    classifier `fc`. He-normal initialisation, the depthwise ones by the fan-in of their own channel. Without the
    dropout before the classifier."""

    def __init__(self, input_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        check_side(input_shape, SMALLEST)
        channels = STEM
        self.stem = nn.Sequential(*_normalised(input_shape[0], channels, 3), nn.ReLU6())
        self.blocks = nn.Sequential()
        for expansion, out, count, first_stride in STAGES:
            for block in range(count):
                stride = first_stride if block == 0 else 1
                self.blocks.append(InvertedResidual(expansion, channels, out, stride))
                channels = out
        self.last = nn.Sequential(*_normalised(channels, LAST, 1), nn.ReLU6())
        self.mean = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(LAST, classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        he_normal(self)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) → logits (N, classes)."""
        maps = self.last(self.blocks(self.stem(images)))
        return self.fc(torch.flatten(self.mean(maps), 1))


NETWORKS = {"mobilenetv2": MobileNetV2}
