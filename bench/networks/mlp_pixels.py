"""LeNet-500-300 whose pixels are units too, for methods that gate the input (Lee et al., arXiv 1805.10896)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class PixelMLP(nn.Module):
    """Flattened pixels → `pixels` → 500 → 300 → logits, with ReLU behind the two hidden layers.

    `pixels` hands every pixel on, times one, and does not learn: its units are the pixels. Its multiplications are
    counted, dense and compact, though what is left of it is a choice of pixels. The others as in `mlp-500-300`."""

    def __init__(self, input_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        count = math.prod(input_shape)
        self.pixels = nn.Linear(count, count, bias=False)
        self.pixels.weight.requires_grad_(False)
        self.fc1 = nn.Linear(count, 500)
        self.relu1 = nn.ReLU()
        self.fc2 = nn.Linear(500, 300)
        self.relu2 = nn.ReLU()
        self.fc3 = nn.Linear(300, classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.eye_(self.pixels.weight)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) → logits (N, classes)."""
        hidden = self.relu1(self.fc1(self.pixels(torch.flatten(images, 1))))
        return self.fc3(self.relu2(self.fc2(hidden)))


NETWORKS = {"mlp-500-300-pixels": PixelMLP}
