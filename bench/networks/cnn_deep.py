"""`cnn-deep`: a deep plain convolutional network, 3×3 and 1×1 in turn, for images of 8×8 to 32×32."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.networks._he import he_normal
from bench.networks._images import check_side

LAYERS = ((32, 3, 1), (32, 1, 1), (32, 3, 1), (32, 1, 1), (64, 3, 2), (64, 1, 1), (64, 3, 2), (64, 1, 1))
"""(channels, kernel, stride) of conv1 … conv8."""

SMALLEST = 4
"""Side of the smallest image that two strides of 2 leave a pixel of."""


class DeepCNN(nn.Module):
    """Eight convolutions with ReLU, conv1 … conv8, relu1 … relu8; the mean over all places feeds the
    classifier `fc`.

    Strides instead of max pooling, no normalisation and no bias in the convolutions, as in all-convolutional
    networks (Springenberg et al. 2014, arXiv 1412.6806, whose 1×1 layers these are too): so that every 1×1
    convolution has an exact product with its neighbours, padded or not. He-normal initialisation."""

    def __init__(self, input_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels = input_shape[0]
        check_side(input_shape, SMALLEST)
        for number, (out, kernel, stride) in enumerate(LAYERS, 1):
            conv = nn.Conv2d(channels, out, kernel, stride, padding=kernel // 2, bias=False)
            self.add_module(f"conv{number}", conv)
            self.add_module(f"relu{number}", nn.ReLU())
            channels = out
        self.mean = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        he_normal(self)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) → logits (N, classes)."""
        maps = images
        for number in range(1, len(LAYERS) + 1):
            maps = self.get_submodule(f"conv{number}")(maps)
            maps = self.get_submodule(f"relu{number}")(maps)
        return self.fc(torch.flatten(self.mean(maps), 1))


NETWORKS = {"cnn-deep": DeepCNN}
