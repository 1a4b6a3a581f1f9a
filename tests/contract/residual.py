"""The network of the contract for methods that need residual branches: as small as there can be a choice of them."""

from __future__ import annotations

from torch import nn

from bench.networks.resnet import BasicBlock

BLOCKS, WIDTH = 4, 8


def build(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """A stem, four residual blocks of 8 channels and a classifier, for images of any size."""
    stem = (nn.Conv2d(input_shape[0], WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU())
    blocks = (BasicBlock(WIDTH, WIDTH, stride=1, project=False) for _ in range(BLOCKS))
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, classes))
