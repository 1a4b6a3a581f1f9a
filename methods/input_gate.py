"""The gate that depends on the image, as it stands in a delivered network."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class InputGate(nn.Module):
    """z_k = clip(slope_k·s_k + offset_k, 0, 1) where that is above floor_k, otherwise 0; s_k: the mean of unit k over
    its places. slope, offset, floor: (size,) each. A unit of multiplier 0 is closed for that image.

    Every unit is judged by its own values alone, so that a gate can be cut to the units that are kept.
    """

    slope: Tensor
    offset: Tensor
    floor: Tensor

    def __init__(self, slope: Tensor, offset: Tensor, floor: Tensor) -> None:
        """Raises ValueError where the three are not of one length."""
        super().__init__()
        if slope.dim() != 1 or not slope.shape == offset.shape == floor.shape:
            shapes = ", ".join(str(tuple(each.shape)) for each in (slope, offset, floor))
            raise ValueError(f"slope, offset and floor of a gate are one number per unit, not {shapes}")
        self.register_buffer("slope", slope)
        self.register_buffer("offset", offset)
        self.register_buffer("floor", floor)

    @property
    def size(self) -> int:
        return len(self.slope)

    def forward(self, values: Tensor) -> Tensor:
        """(N, size, …) → multipliers (N, size)."""
        s = values.flatten(2).mean(2) if values.dim() > 2 else values
        z = (self.slope * s + self.offset).clamp(0, 1)
        return z * (z > self.floor)

    def units(self, kept: list[int]) -> InputGate:
        """The gate of some of the units, by index."""
        index = torch.tensor(kept, device=self.slope.device)
        return InputGate(self.slope[index], self.offset[index], self.floor[index])
