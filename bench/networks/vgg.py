"""VGG with batch norm for CIFAR-size images: `vgg16` and `vgg19`.

Simonyan and Zisserman 2015 (arXiv 1409.1556), configurations D and E, with the head that the pruning literature
gives them on CIFAR: one hidden layer of 512 in place of two of 4096 (14,991,946 parameters of `vgg16` for 10 classes,
313,463,808 MACs at 32×32).
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from bench.networks._he import he_normal
from bench.networks._images import check_side

CHANNELS = (64, 128, 256, 512, 512)
"""Of the five stages; each ends with a 2×2 max pooling."""

HEAD = 512
SMALLEST = 32
"""Side of the smallest image that five poolings leave a pixel of."""


class VGG(nn.Module):
    """3×3 convolutions with bias, batch norm and ReLU in five stages of `depths` layers; the mean over all places (at
    32×32 one) feeds fc1, batch norm, ReLU and the classifier fc2.

    Layers conv1, bn1, relu1 … in `features`. Without the dropout that some have between them. He-normal
    initialisation."""

    def __init__(self, depths: tuple[int, ...], input_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        check_side(input_shape, SMALLEST)
        channels, number = input_shape[0], 0
        self.features = nn.Sequential()
        for stage, (out, depth) in enumerate(zip(CHANNELS, depths, strict=True), 1):
            for _ in range(depth):
                number += 1
                self.features.add_module(f"conv{number}", nn.Conv2d(channels, out, 3, padding=1))
                self.features.add_module(f"bn{number}", nn.BatchNorm2d(out))
                self.features.add_module(f"relu{number}", nn.ReLU())
                channels = out
            self.features.add_module(f"pool{stage}", nn.MaxPool2d(2))
        self.mean = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Linear(channels, HEAD)
        self.bn = nn.BatchNorm1d(HEAD)
        self.relu = nn.ReLU()
        self.fc2 = nn.Linear(HEAD, classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        he_normal(self)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) → logits (N, classes)."""
        maps = self.mean(self.features(images))
        return self.fc2(self.relu(self.bn(self.fc1(torch.flatten(maps, 1)))))


NETWORKS = {"vgg16": partial(VGG, (2, 2, 3, 3, 3)), "vgg19": partial(VGG, (2, 2, 4, 4, 4))}
