"""Pre-activation residual networks for CIFAR-size images: `preact-resnet20`, `-56`, `-110`, the wide `wrn-16-4` and
`wrn-28-10`, and `td-resnet32` and `td-resnet32-narrow`, the networks of targeted dropout.

He et al. 2016, Identity Mappings (arXiv 1603.05027); Zagoruyko and Komodakis 2016, Wide Residual Networks (arXiv
1605.07146); Gomez et al. 2019 (arXiv 1905.13678), whose 32-layer network has a 7×7 stem and stages of twice the usual
width; the narrow one has the usual width. Parameters for 10 classes: `wrn-28-10` 36,479,194, `wrn-16-4` 2,748,890,
`td-resnet32` 1,857,498, `td-resnet32-narrow` 468,890.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from bench.networks._he import he_normal
from bench.networks._images import check_side

STEM = 16
SMALLEST = 4
"""Side of the smallest image that two strides of 2 leave a pixel of."""


class PreActBlock(nn.Module):
    """Batch norm and ReLU before each of two 3×3 convolutions; what they give is added to the stream as it came.

    Where width or size change, or where it is asked for, a 1×1 convolution of the first ReLU's maps takes the place of
    the stream."""

    def __init__(self, channels: int, out: int, stride: int, projects: bool = False) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.projects = projects or stride != 1 or channels != out
        if self.projects:
            self.shortcut = nn.Conv2d(channels, out, 1, stride, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        """(N, C, H, W) → (N, out, ⌈H/stride⌉, ⌈W/stride⌉)."""
        active = self.relu1(self.bn1(maps))
        branch = self.conv2(self.relu2(self.bn2(self.conv1(active))))
        return branch + (self.shortcut(active) if self.projects else maps)


class PreActResNet(nn.Module):
    """A stem of 16 channels and three stages of `blocks` blocks with `widths` channels, the image halved between them;
    a last batch norm and ReLU, and the mean over all places feeds the classifier `fc`. He-normal initialisation."""

    def __init__(
        self,
        blocks: int,
        widths: tuple[int, int, int],
        stem: int,
        input_shape: tuple[int, int, int],
        classes: int,
        projects: bool = False,
    ) -> None:
        """stem: side of its kernel. projects: the first block of every stage does, of the first stage too."""
        super().__init__()
        check_side(input_shape, SMALLEST)
        channels = STEM
        self.conv1 = nn.Conv2d(input_shape[0], channels, stem, padding=stem // 2, bias=False)
        self.stages = nn.Sequential()
        for stage, out in enumerate(widths):
            layers = nn.Sequential()
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(PreActBlock(channels, out, stride, projects and block == 0))
                channels = out
            self.stages.append(layers)
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


NETWORKS = {
    "preact-resnet20": partial(PreActResNet, 3, (16, 32, 64), 3),
    "preact-resnet56": partial(PreActResNet, 9, (16, 32, 64), 3),
    "preact-resnet110": partial(PreActResNet, 18, (16, 32, 64), 3),
    "td-resnet32": partial(PreActResNet, 5, (32, 64, 128), 7, projects=True),
    "td-resnet32-narrow": partial(PreActResNet, 5, (16, 32, 64), 7, projects=True),
    "wrn-16-4": partial(PreActResNet, 2, (64, 128, 256), 3),
    "wrn-28-10": partial(PreActResNet, 4, (160, 320, 640), 3),
}
