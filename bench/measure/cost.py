"""What one network costs, apart from time."""

from __future__ import annotations

from torch import Tensor, nn

from bench.measure import size
from bench.measure.depth import depth
from bench.measure.macs import count_macs
from bench.measure.memory import peak_bytes
from bench.records.schema import Cost


def cost(network: nn.Module, example: Tensor) -> Cost:
    """Sizes, depth, MACs and peak memory of `network` for one image, `example` (1, C, H, W), on the network's
    device.

    Raises CellFailed("unequal") if the two MAC counters disagree, BadInput where torch.fx cannot trace the network.
    """
    layers, active_layers = depth(network, example)
    return Cost(
        parameters=size.parameters(network),
        nonzero=size.nonzero(network),
        macs=count_macs(network, example),
        weight_bytes=size.weight_bytes(network),
        peak_bytes=peak_bytes(network, example),
        weights=size.weights(network),
        nonzero_weights=size.nonzero_weights(network),
        layers=layers,
        active_layers=active_layers,
    )
