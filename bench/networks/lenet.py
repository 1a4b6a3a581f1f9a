"""LeNet-5 as Caffe's MNIST example has it, 20-50-500: the LeNet of the pruning literature."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.networks._images import check_side

SMALLEST = 16
"""Side of the smallest image that two 5×5 convolutions and two poolings leave a pixel of."""


class LeNet5(nn.Module):
    """Two 5×5 convolutions without padding (20, 50 channels), each with ReLU and 2×2 max pooling, then 500
    features and the logits. Caffe's own has no ReLU after the convolutions; the pruning papers do (conv →
    ReLU → pool), and so does this. Initialised as torch does: uniform within ±1/√fan-in."""

    def __init__(self, input_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, height, width = input_shape
        check_side(input_shape, SMALLEST)
        self.conv1 = nn.Conv2d(channels, 20, 5)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.relu2 = nn.ReLU()
        self.pool2 = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(50 * _side_left(height) * _side_left(width), 500)
        self.relu3 = nn.ReLU()
        self.fc2 = nn.Linear(500, classes)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) → logits (N, classes)."""
        maps = self.pool1(self.relu1(self.conv1(images)))
        maps = self.pool2(self.relu2(self.conv2(maps)))
        return self.fc2(self.relu3(self.fc1(torch.flatten(maps, 1))))


def _side_left(side: int) -> int:
    return ((side - 4) // 2 - 4) // 2


NETWORKS = {"lenet5": LeNet5}
