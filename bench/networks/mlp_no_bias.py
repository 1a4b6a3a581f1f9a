"""`mlp-no-bias`: the perceptron of an independent reproduction of targeted dropout (sharanry/Targeted-Dropout):
1000-1000-500-200 without biases."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

HIDDEN = (1000, 1000, 500, 200)


class MLPWithoutBias(nn.Module):
    """Flattened pixels → four hidden layers with ReLU → logits: layers fc1 … fc4, classifier; torch's own
    initialisation."""

    def __init__(self, input_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        sizes = (math.prod(input_shape), *HIDDEN)
        for number in range(1, len(sizes)):
            self.add_module(f"fc{number}", nn.Linear(sizes[number - 1], sizes[number], bias=False))
            self.add_module(f"relu{number}", nn.ReLU())
        self.classifier = nn.Linear(sizes[-1], classes, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) → logits (N, classes)."""
        hidden = torch.flatten(images, 1)
        for number in range(1, len(HIDDEN) + 1):
            hidden = self.get_submodule(f"fc{number}")(hidden)
            hidden = self.get_submodule(f"relu{number}")(hidden)
        logits: Tensor = self.classifier(hidden)
        return logits


NETWORKS = {"mlp-no-bias": MLPWithoutBias}
