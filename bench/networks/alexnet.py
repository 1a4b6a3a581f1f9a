"""`alexnet-cifar`: AlexNet scaled to images of 32×32, without biases, as the CIFAR-100 experiments of SeReNe have it.

Krizhevsky et al. 2012, with 3×3 kernels; Tartaglione et al. 2021 (arXiv 2102.03773) for the size: 23,631,552 parameters
for 100 classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.networks._he import he_normal
from bench.networks._images import check_side

CONVOLUTIONS = ((64, 2, True), (192, 1, True), (384, 1, False), (256, 1, False), (256, 1, True))
"""(channels, stride, whether a 2×2 max pooling follows)."""

HEAD, PLACES = 4096, 2
SMALLEST = 32
"""Side of the smallest image that leaves a map of 2×2."""


class AlexNet(nn.Module):
    """Five 3×3 convolutions and two hidden layers of 4096, each with ReLU, and the classifier: conv1 … conv5, fc1 …
    fc3. Maps larger than 2×2 are averaged to 2×2. Neither biases nor normalisation nor dropout. He-normal
    initialisation."""

    def __init__(self, input_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        check_side(input_shape, SMALLEST)
        channels = input_shape[0]
        self.features = nn.Sequential()
        for number, (out, stride, pools) in enumerate(CONVOLUTIONS, 1):
            self.features.add_module(f"conv{number}", nn.Conv2d(channels, out, 3, stride, 1, bias=False))
            self.features.add_module(f"relu{number}", nn.ReLU())
            if pools:
                self.features.add_module(f"pool{number}", nn.MaxPool2d(2))
            channels = out
        self.mean = nn.AdaptiveAvgPool2d(PLACES)
        self.fc1 = nn.Linear(channels * PLACES * PLACES, HEAD, bias=False)
        self.relu6 = nn.ReLU()
        self.fc2 = nn.Linear(HEAD, HEAD, bias=False)
        self.relu7 = nn.ReLU()
        self.fc3 = nn.Linear(HEAD, classes, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        he_normal(self)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) → logits (N, classes)."""
        maps = self.mean(self.features(images))
        hidden = self.relu6(self.fc1(torch.flatten(maps, 1)))
        return self.fc3(self.relu7(self.fc2(hidden)))


NETWORKS = {"alexnet-cifar": AlexNet}
