"""Residual networks for CIFAR-size images: `resnet20`, `-32`, `-56` and `-110`, and the same with projections, `-b`.

He et al. 2016, Deep Residual Learning (arXiv 1512.03385), section 4.2: 269,722 parameters of `resnet20` and 853,018 of
`resnet56` for 10 classes.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.networks._he import he_normal
from bench.networks._images import check_side

WIDTHS = (16, 32, 64)
SMALLEST = 4
"""Side of the smallest image that two strides of 2 leave a pixel of."""


class PaddedShortcut(nn.Module):
    """Option A: every second pixel, and `padding` channels of zeros on either side. No parameters."""

    def __init__(self, padding: int) -> None:
        super().__init__()
        self.padding = padding

    def forward(self, maps: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C + 2·padding, ⌈H/2⌉, ⌈W/2⌉)."""
        return F.pad(maps[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with batch norm, added to the shortcut before the last ReLU."""

    def __init__(self, channels: int, out: int, stride: int, project: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.relu2 = nn.ReLU()
        self.shortcut: nn.Module
        if stride == 1 and channels == out:
            self.shortcut = nn.Identity()
        elif project:
            self.shortcut = nn.Sequential()
            self.shortcut.add_module("conv", nn.Conv2d(channels, out, 1, stride, bias=False))
            self.shortcut.add_module("bn", nn.BatchNorm2d(out))
        else:
            self.shortcut = PaddedShortcut((out - channels) // 2)

    def forward(self, maps: Tensor) -> Tensor:
        """(N, C, H, W) → (N, out, ⌈H/stride⌉, ⌈W/stride⌉)."""
        branch = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(maps)))))
        return self.relu2(branch + self.shortcut(maps))


class ResNet(nn.Module):
    """A 3×3 stem and three stages of `blocks` basic blocks with 16, 32 and 64 channels, the image halved between them;
    the mean over all places feeds the classifier `fc`. He-normal initialisation.

    project: option B of the paper, a 1×1 convolution where a stage changes the width, in place of option A, which its
    CIFAR networks have."""

    def __init__(self, blocks: int, project: bool, input_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        check_side(input_shape, SMALLEST)
        channels = WIDTHS[0]
        self.conv1 = nn.Conv2d(input_shape[0], channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.stages = nn.Sequential()
        for stage, out in enumerate(WIDTHS):
            layers = nn.Sequential()
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(BasicBlock(channels, out, stride, project))
                channels = out
            self.stages.append(layers)
        self.mean = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        he_normal(self)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) → logits (N, classes)."""
        maps = self.stages(self.relu1(self.bn1(self.conv1(images))))
        return self.fc(torch.flatten(self.mean(maps), 1))


NETWORKS = {
    f"resnet{6 * blocks + 2}{option}": partial(ResNet, blocks, option == "-b")
    for blocks in (3, 5, 9, 18)
    for option in ("", "-b")
}
