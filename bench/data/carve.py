"""Carving a fixed, stratified part out of a split: the same images on every machine, whatever the seed of a
run."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor

from bench.data.split import Split


def stratified_part(labels: Tensor, fraction: float, salt: int) -> Tensor:
    """Which images belong to the part: bool (N,), True for `fraction` of every class.

    The part has `fraction` of all images, rounded: every class gives its share rounded down, those with the
    largest remainders one more. A class of two images or more gives at least one and keeps at least one. The
    draw depends on the labels and on `salt` alone, through `random.Random.random`, the one stream that Python
    promises never to change.
    """
    stream = random.Random(salt)
    keys = np.array([stream.random() for _ in range(len(labels))])
    of_image = labels.cpu().numpy()
    classes, sizes = np.unique(of_image, return_counts=True)
    share = fraction * sizes
    counts = np.floor(share).astype(np.int64)
    largest_remainders = np.argsort(counts - share, kind="stable")
    counts[largest_remainders[: round(fraction * len(of_image)) - counts.sum()]] += 1
    counts = np.minimum(np.maximum(counts, 1), sizes - 1)
    chosen = np.zeros(len(of_image), dtype=bool)
    for label, count in zip(classes, counts, strict=True):
        members = np.flatnonzero(of_image == label)
        chosen[members[np.argsort(keys[members], kind="stable")[:count]]] = True
    return torch.from_numpy(chosen)


def carve(split: Split, fraction: float, salt: int) -> tuple[Split, Split]:
    """(the rest, the carved part); both keep the order of the images in `split`."""
    chosen = stratified_part(split.labels, fraction, salt)
    rest, part = (torch.nonzero(which).flatten() for which in (~chosen, chosen))
    return split.select(rest), split.select(part)
