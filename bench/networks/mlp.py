"""Fully connected networks: LeNet-300-100 (LeCun et al. 1998) and LeNet-500-300."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn


class MLP(nn.Module):
    """Flattened pixels → hidden layers with ReLU → logits. Layers fc1, fc2, …; initialised as torch does:
    uniform within ±1/√fan-in, weights and biases."""

    def __init__(self, hidden: tuple[int, int], input_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        first, second = hidden
        self.fc1 = nn.Linear(math.prod(input_shape), first)
        self.relu1 = nn.ReLU()
        self.fc2 = nn.Linear(first, second)
        self.relu2 = nn.ReLU()
        self.fc3 = nn.Linear(second, classes)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) → logits (N, classes)."""
        hidden = self.relu1(self.fc1(torch.flatten(images, 1)))
        return self.fc3(self.relu2(self.fc2(hidden)))


NETWORKS = {"mlp-300-100": partial(MLP, (300, 100)), "mlp-500-300": partial(MLP, (500, 300))}
