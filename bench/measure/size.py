"""How large a network is. A tensor that several modules share counts once."""

from __future__ import annotations

from torch import Tensor, nn


def parameters(network: nn.Module) -> int:
    """Number of parameters (buffers, such as running statistics, are none)."""
    return sum(parameter.numel() for parameter in network.parameters())


def nonzero(network: nn.Module) -> int:
    """Number of parameters that are not exactly zero."""
    return sum(int(parameter.detach().count_nonzero()) for parameter in network.parameters())


def weights(network: nn.Module) -> int:
    """Number of weights that a method may prune: those of convolutions and linear layers, biases left out."""
    return sum(weight.numel() for weight in _weights(network))


def nonzero_weights(network: nn.Module) -> int:
    """How many of these are not exactly zero."""
    return sum(int(weight.detach().count_nonzero()) for weight in _weights(network))


def _weights(network: nn.Module) -> list[Tensor]:
    layers = (module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear))
    return list({id(layer.weight): layer.weight for layer in layers}.values())


def weight_bytes(network: nn.Module) -> int:
    """Bytes of parameters and buffers: what has to be in memory to run the network."""
    return sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))
