"""`mlp-deep`: seven weight matrices, deep for what it has to do, so that whole layers can go."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bench.networks._he import he_normal

HIDDEN, WIDTH = 6, 100


class DeepMLP(nn.Module):
    """Flattened pixels → six hidden layers of 100 with ReLU → logits: layers fc1 … fc7, relu1 … relu6.

    He-normal weights and zero biases, for torch's own initialisation shrinks the signal by √6 in every
    layer."""

    def __init__(self, input_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        features = math.prod(input_shape)
        for number in range(1, HIDDEN + 1):
            self.add_module(f"fc{number}", nn.Linear(features, WIDTH))
            self.add_module(f"relu{number}", nn.ReLU())
            features = WIDTH
        self.add_module(f"fc{HIDDEN + 1}", nn.Linear(features, classes))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        he_normal(self)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) → logits (N, classes)."""
        hidden = torch.flatten(images, 1)
        for number in range(1, HIDDEN + 1):
            hidden = self.get_submodule(f"fc{number}")(hidden)
            hidden = self.get_submodule(f"relu{number}")(hidden)
        logits: Tensor = self.get_submodule(f"fc{HIDDEN + 1}")(hidden)
        return logits


NETWORKS = {"mlp-deep": DeepMLP}
