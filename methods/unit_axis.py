"""Where the units of a layer are in its output."""

from __future__ import annotations

from torch import nn


def unit_axis(module: nn.Module) -> int:
    """The last dim of a linear layer's output (and input), which may be (N, size) or tokens (N, …, size); dim 1 of any
    other's."""
    return -1 if isinstance(module, nn.Linear) else 1
