"""Layers that stand in a compact network where the code of the full one does not fit fewer channels.

torch.fx does not look into them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.networks import HeadProducts


class Select(nn.Module):
    """Channels of a tensor in another order, some of them left out, zeros between them.

    positions: of each channel of the output, the channel of the input, or -1 for zeros. axis: of the channels.
    """

    _index: Tensor | None
    _mask: Tensor | None

    def __init__(self, positions: Sequence[int], axis: int = 1) -> None:
        super().__init__()
        self.positions, self.axis = tuple(positions), axis
        given = [position for position in self.positions if position >= 0]
        self._before = next((k for k, position in enumerate(self.positions) if position >= 0), 0)
        self._after = len(self.positions) - len(given) - self._before
        inner = self.positions[self._before : self._before + len(given)]
        self._start = given[0] if given else 0
        is_block = inner == tuple(range(self._start, self._start + len(given)))
        self._given = len(given)
        index = mask = None
        if not is_block:
            places = torch.tensor(self.positions)
            index = places.clamp(min=0)
            mask = places >= 0 if self._given < len(self.positions) else None
        # They lie where the network does: made in a pass, they would be copied to the device in each one.
        self.register_buffer("_index", index, persistent=False)
        self.register_buffer("_mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self._index is None:
            block = x.narrow(self.axis, self._start, self._given)
            if self._before == self._after == 0:
                return block
            behind = (0, 0) * (x.dim() - 1 - self.axis)
            return F.pad(block, (*behind, self._before, self._after))
        chosen = x.index_select(self.axis, self._index)
        if self._mask is None:
            return chosen
        places = [1] * x.dim()
        places[self.axis] = -1
        return chosen * self._mask.to(x.dtype).reshape(places)


class Shift(nn.Module):
    """What is left of a sum whose other terms are the same for every input: adds one number per channel.

    bias: (channels,). axis: of the channels, counted from the last one, so below zero.
    """

    def __init__(self, channels: int, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias.reshape(-1, *[1] * (-self.axis - 1))


_COMPUTES = {"forward", "_conv_forward", "__call__", "_call_impl", "__getattr__", "weight", "bias"}


def layer_class(module: nn.Module) -> type[nn.Module]:
    """The class of a module; of one derived from a linear layer or a convolution that computes nothing else, that."""
    kind = type(module)
    for base in (nn.Linear, nn.Conv2d):
        if issubclass(kind, base) and not kind.__module__.startswith("torch."):
            derived = kind.__mro__[: kind.__mro__.index(base)]
            if all(_COMPUTES.isdisjoint(vars(each)) for each in derived):
                return base
    return kind


OWN = (Select, Shift, HeadProducts)
"""HeadProducts: of networks, not of what compaction leaves; cut by heads."""
