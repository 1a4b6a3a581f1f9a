"""Noise of 16 bits a draw: one number of the generator, which costs more than all that is done with it, is enough for
four."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def sixteen_bits(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Independent draws, uniform on all values of int16; on the generator's device."""
    count = math.prod(shape)
    numbers = torch.empty(-(-count // 4), dtype=torch.int64, device=generator.device)
    numbers.random_(-(2**63), None, generator=generator)
    return numbers.view(torch.int16)[:count].view(*shape)


def bernoulli(shape: Sequence[int], probability: float, generator: torch.Generator) -> Tensor:
    """Independent draws, True with `probability` to the nearest multiple of 2⁻¹⁶; on the generator's device."""
    bits, bound = sixteen_bits(shape, generator), round(probability * 2**16) - 2**15
    if bits.device.type == "cpu":  # numpy's comparison takes a tenth of the time of torch's
        return torch.from_numpy(bits.numpy() < bound)
    return bits.int() < bound  # of int16 the bound of a probability of 1 is none


def logistic(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draws of logit u, u uniform on the odd multiples of 2⁻¹⁷; on the generator's device."""
    return sixteen_bits(shape, generator).float().mul_(2**-16).add_(0.5 + 2**-17).logit_()
