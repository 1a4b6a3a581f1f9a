"""The one gate through which arrays of unknown origin become a data set: checks, then (N, C, H, W)
tensors."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from bench.data.split import RawData, Split
from bench.errors import BadInput

KEYS = ("x_train", "y_train", "x_test", "y_test")


def checked(
    where: str, arrays: Mapping[str, np.ndarray], classes: int | None, augment: bool = False
) -> RawData:
    """`x_*`: uint8 (N, H, W) or (N, H, W, C); `y_*`: integers (N,). Raises BadInput: `where`, the key, what
    is wrong.

    classes: how many there are, where that is known; otherwise the labels of y_train must run from 0 without
    a gap.
    """
    for key in ("x_train", "x_test"):
        _check_images(where, key, arrays[key])
    train_shape, test_shape = arrays["x_train"].shape[1:], arrays["x_test"].shape[1:]
    if train_shape != test_shape:
        raise BadInput(f"{where}: x_test has images of {test_shape}, x_train of {train_shape}")
    for key in ("y_train", "y_test"):
        _check_labels(where, key, arrays[key], len(arrays[key.replace("y", "x", 1)]))
    known = _count_classes(where, arrays["y_train"]) if classes is None else classes
    if known < 2:
        raise BadInput(f"{where}: y_train has fewer than 2 classes")
    for key in ("y_train", "y_test"):
        outside = arrays[key][(arrays[key] < 0) | (arrays[key] >= known)]
        if outside.size:
            raise BadInput(f"{where}: {key} has label {outside[0]}, out of range 0 to {known - 1}")
    train, test = (_split(arrays[f"x_{part}"], arrays[f"y_{part}"]) for part in ("train", "test"))
    return RawData(train, test, known, augment=augment)


def _check_images(where: str, key: str, images: np.ndarray) -> None:
    if images.dtype != np.uint8:
        raise BadInput(f"{where}: {key} has dtype {images.dtype}, must be uint8")
    if images.ndim not in (3, 4):
        raise BadInput(f"{where}: {key} has shape {images.shape}, must be (N, H, W) or (N, H, W, C)")
    if not images.size:
        raise BadInput(f"{where}: {key} has shape {images.shape}, holds no pixels")
    if images.ndim == 4 and images.shape[1] <= 4 < images.shape[3]:
        raise BadInput(
            f"{where}: {key} has shape {images.shape}, looks like (N, C, H, W), must be (N, H, W, C)"
        )


def _check_labels(where: str, key: str, labels: np.ndarray, images: int) -> None:
    if not np.issubdtype(labels.dtype, np.integer):
        raise BadInput(f"{where}: {key} has dtype {labels.dtype}, must be an integer type")
    if labels.ndim != 1:
        raise BadInput(f"{where}: {key} has shape {labels.shape}, must be (N,)")
    if len(labels) != images:
        raise BadInput(
            f"{where}: {key} has {len(labels)} labels for the {images} images of {key.replace('y', 'x', 1)}"
        )


def _count_classes(where: str, labels: np.ndarray) -> int:
    present = np.unique(labels)
    if present[0] < 0:
        raise BadInput(f"{where}: y_train has label {present[0]}, out of range (labels count from 0)")
    if present[-1] != len(present) - 1:
        missing = np.flatnonzero(present != np.arange(len(present)))[0]
        raise BadInput(
            f"{where}: y_train has label {present[-1]} but no image of class {missing}; labels must "
            "run from 0 without a gap (or a key 'classes' list them all)"
        )
    return len(present)


def _split(images: np.ndarray, labels: np.ndarray) -> Split:
    pixels = images[:, None] if images.ndim == 3 else np.moveaxis(images, 3, 1)
    return Split(
        torch.from_numpy(np.ascontiguousarray(pixels)), torch.from_numpy(labels.astype(np.int64, copy=True))
    )
