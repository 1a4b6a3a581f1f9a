"""The initialisation of deep networks without normalisation."""

from __future__ import annotations

from torch import nn


def he_normal(network: nn.Module) -> None:
    """Weights of linear layers and convolutions from N(0, 2 / fan-in), biases zero (He et al. 2015, arXiv
    1502.01852, eq. 10): a ReLU network keeps the scale of its signal at any depth."""
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
