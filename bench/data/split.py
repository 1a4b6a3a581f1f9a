"""The shapes of data: one split, a data set as training sees it, and what a source of data hands over."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.data.image_files import ImageFiles


@dataclass(frozen=True)
class Split:
    """images: uint8 (N, C, H, W), in memory, or files that give them; labels: int64 (N,), in 0 … classes - 1. Both on
    one device."""

    images: Tensor | ImageFiles
    labels: Tensor

    def __len__(self) -> int:
        return self.images.shape[0]

    def to(self, device: torch.device | str) -> Split:
        """The same split on `device`; no copy where it is there already."""
        return Split(self.images.to(device), self.labels.to(device))

    def select(self, indices: Tensor) -> Split:
        """A copy of the images at `indices` (int64), in that order."""
        images = self.images
        some = images.at(indices) if isinstance(images, ImageFiles) else images.index_select(0, indices)
        return Split(some, self.labels.index_select(0, indices))

    def batches(self, chosen: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """(images, labels) at each of the index tensors (int64, on the device of the labels)."""
        wanted = list(chosen)
        images = self.images
        if isinstance(images, ImageFiles):
            read = images.batches(
                [indices.cpu() for indices in wanted]
            )  # all at once: the host waits here alone
        else:
            read = (images.index_select(0, indices) for indices in wanted)
        for indices, pixels in zip(wanted, read, strict=True):
            yield pixels, self.labels.index_select(0, indices)


@dataclass(frozen=True)
class Dataset:
    """What training and selection may see of a data set; the test split is deliberately not part of it, but for how
    many images it has (test_size).

    name: as it was asked for (a name, or the path of the user's own data). mean, std: float32 (C,), of the
    train part's pixels divided by 255; a channel that is constant has std 1. augment: whether random crops
    and flips suit the images. fingerprint: hash over the pixels and labels of all three parts, so that it
    changes when either the data or the way it is split does.
    """

    name: str
    train: Split
    validation: Split
    classes: int
    mean: Tensor
    std: Tensor
    augment: bool
    fingerprint: str
    test_size: int

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        _, channels, height, width = self.train.images.shape
        return channels, height, width


@dataclass(frozen=True)
class RawData:
    """What a source hands over: its own train and test images, before a validation part is carved from train.

    validation_fraction: of the train images. augment: as in Dataset. mean, std: (C,), as in Dataset, where they are
    not to be taken from the images.
    """

    train: Split
    test: Split
    classes: int
    validation_fraction: float = 0.1
    augment: bool = False
    mean: Tensor | None = None
    std: Tensor | None = None
