"""Batches from a split that is whole on its device (nothing is copied but the batch itself), or in files."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.data.split import Dataset, Split
from methods.base import Batch

Augment = Callable[[Tensor], Tensor]
"""uint8 (N, C, H, W) → the same, on the same device."""


@dataclass(frozen=True)
class Normalise:
    """uint8 (N, C, H, W) → float32 (x / 255 - mean) / std, per channel.

    scale, shift: (1, C, 1, 1), on the device of the images: the same map as one product and one sum.
    """

    scale: Tensor
    shift: Tensor

    @classmethod
    def of(cls, dataset: Dataset, device: torch.device | str = "cpu") -> Normalise:
        """By the mean and deviation of the train part of `dataset`."""
        return cls.by(dataset.mean, dataset.std, device)

    @classmethod
    def by(cls, mean: Tensor, std: Tensor, device: torch.device | str = "cpu") -> Normalise:
        """mean, std: (C,), of pixels divided by 255."""
        scale, shift = 1 / (255 * std.double()), -mean.double() / std.double()
        return cls(*(value.float().reshape(1, -1, 1, 1).to(device) for value in (scale, shift)))

    def __call__(self, images: Tensor) -> Tensor:
        return images.float().mul_(self.scale).add_(self.shift)


def shuffled(
    split: Split,
    batch_size: int,
    generator: torch.Generator,
    normalise: Normalise,
    augment: Augment | None = None,
    start: int = 0,
    images: int | None = None,
) -> Iterator[Batch]:
    """One epoch: every image once, or the first `images` of them, in an order drawn from `generator` (a CPU one, so
    that the order is the same on every device) when the first batch is asked for; the last batch may be smaller. start:
    batches to leave out at the beginning, of an epoch that was broken off."""
    order = torch.randperm(len(split), generator=generator)[:images].to(split.labels.device)
    for inputs, labels in split.batches(_of_several(order.split(batch_size))[start:]):
        yield Batch(normalise(inputs if augment is None else augment(inputs)), labels)


def _of_several(batches: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The same, but where the last batch is a single image the one before gives it one of its own: of one image there
    are no statistics that a normalisation could use."""
    if len(batches) < 2 or len(batches[-1]) > 1 or len(batches[-2]) < 3:
        return batches
    *rest, before, last = batches
    return (*rest, before[:-1], torch.cat([before[-1:], last]))


def evaluation_batch(input_shape: tuple[int, ...]) -> int:
    """How many images at once where nothing is trained: 1,024 up to CIFAR's size (C, 32, 32), of larger ones as many as
    have so many pixels, 64 at least."""
    return max(64, min(1024, 1024 * 32 * 32 // math.prod(input_shape[1:])))


def ordered(split: Split, batch_size: int, normalise: Normalise) -> Iterator[Batch]:
    """Every image once, in the order of the split; for evaluation."""
    if isinstance(split.images, Tensor):  # views: nothing is copied
        parts: Iterable[tuple[Tensor, Tensor]] = zip(
            split.images.split(batch_size), split.labels.split(batch_size), strict=True
        )
    else:
        parts = split.batches(torch.arange(len(split), device=split.labels.device).split(batch_size))
    for images, labels in parts:
        yield Batch(normalise(images), labels)
