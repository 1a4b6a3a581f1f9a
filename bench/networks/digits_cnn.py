"""`digits-cnn`: a small convolutional network with batch norm for 8×8 digits, quick on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.networks._images import check_side


class DigitsCNN(nn.Module):
    """Three 3×3 convolutions (16, 32, 32 channels), each with batch norm and ReLU, a 2×2 max pooling before
    the third; the mean over all places feeds the classifier, so that images of any size from 2×2 fit.
    Convolutions have no bias, as a normalisation follows. Initialised as torch does: uniform within
    ±1/√fan-in, normalisations at identity."""

    def __init__(self, input_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels = input_shape[0]
        check_side(input_shape, 2)
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(32)
        self.relu2 = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.conv3 = nn.Conv2d(32, 32, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(32)
        self.relu3 = nn.ReLU()
        self.mean = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(32, classes)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) → logits (N, classes)."""
        maps = self.relu1(self.bn1(self.conv1(images)))
        maps = self.pool(self.relu2(self.bn2(self.conv2(maps))))
        maps = self.mean(self.relu3(self.bn3(self.conv3(maps))))
        return self.fc(torch.flatten(maps, 1))


NETWORKS = {"digits-cnn": DigitsCNN}
