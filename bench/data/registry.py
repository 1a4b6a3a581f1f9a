"""From a name or a path to a data set, and the seal on its test split."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import torch
from torch import Tensor

from bench.data.carve import carve
from bench.data.image_files import ImageFiles
from bench.data.image_folder import read_image_folder
from bench.data.npz import read_npz
from bench.data.split import Dataset, RawData, Split
from bench.errors import BadInput, nearest
from bench.folder import collect

ROOT_VARIABLE = "BENCH_DATA"
VALIDATION_SALT = 1
"""Part of the protocol: another value is another validation split."""

Loader = Callable[[Path | None], RawData]
"""What a file of `bench/data/sets` gives for a name: called with the data root, if there is one."""


class TestSplitRefused(RuntimeError):
    """The test split was asked for where it must not be read: while training or choosing anything."""


_sealed: ContextVar[bool] = ContextVar("test_is_sealed", default=False)


@contextmanager
def test_is_sealed() -> Iterator[None]:
    """Inside, `load_test` raises TestSplitRefused. Holds for the calling thread or task."""
    token = _sealed.set(True)
    try:
        yield
    finally:
        _sealed.reset(token)


def available() -> list[str]:
    """Names of the data sets that the files of `bench/data/sets` provide, sorted."""
    return sorted(_loaders())


def load(name_or_path: str | Path, root: str | Path | None = None) -> Dataset:
    """The train and validation part of a data set.

    name_or_path: one of `available()`, or the path of an `.npz` file or of a folder of images. root: where
    data sets lie; the environment variable BENCH_DATA where it is None. Kept in memory for later calls of the
    process. Raises BadInput where the data is unknown, missing or damaged.
    """
    return _prepared(str(name_or_path), data_root(root))[0]


def load_test(name_or_path: str | Path, root: str | Path | None = None) -> Split:
    """The test split; for the evaluation step alone. Raises TestSplitRefused inside `test_is_sealed()`."""
    if _sealed.get():
        raise TestSplitRefused(f"the test split of {str(name_or_path)!r} must not be read during training")
    return _prepared(str(name_or_path), data_root(root))[1]


def data_root(root: str | Path | None) -> Path | None:
    """`root`, else what BENCH_DATA says, else None."""
    given = str(root) if root is not None else os.environ.get(ROOT_VARIABLE, "")
    return Path(os.path.expanduser(given)) if given else None


@functools.cache
def _loaders() -> dict[str, Loader]:
    return collect("bench.data.sets", "DATASETS")


@functools.lru_cache(maxsize=4)
def _prepared(name: str, root: Path | None) -> tuple[Dataset, Split]:
    raw = _raw(name, root)
    train, validation = carve(raw.train, raw.validation_fraction, VALIDATION_SALT)
    if not len(validation):
        raise BadInput(f"{name}: no class has the two train images that a validation split takes")
    mean, std = _mean_and_std(raw, train)
    fingerprint = _fingerprint(train, validation, raw.test, classes=raw.classes)
    dataset = Dataset(
        name, train, validation, raw.classes, mean, std, raw.augment, fingerprint, len(raw.test)
    )
    return dataset, raw.test


def _raw(name: str, root: Path | None) -> RawData:
    if name in _loaders():
        return _loaders()[name](root)
    path = Path(os.path.expanduser(name))
    if path.is_dir():
        return read_image_folder(path)
    if path.suffix == ".npz" or path.is_file():
        return read_npz(path)
    if len(path.parts) > 1:
        raise BadInput(f"data set {name!r}: no such file or folder")
    raise BadInput(
        f"unknown data set {name!r}{nearest(name, available())}; or the path of an .npz or image folder"
    )


def _mean_and_std(raw: RawData, train: Split) -> tuple[Tensor, Tensor]:
    if raw.mean is not None and raw.std is not None:
        return raw.mean, raw.std
    assert isinstance(train.images, Tensor), "images in files come with their mean and deviation"
    return mean_and_std(train.images)


def mean_and_std(images: Tensor) -> tuple[Tensor, Tensor]:
    """Per channel of uint8 (N, C, H, W), in units of 0 … 1: two float32 (C,). A constant channel gets std 1.

    Summed in integers, so that they are the same to the last bit on every machine.
    """
    count = images.numel() // images.shape[1]
    total = squares = torch.zeros(images.shape[1], dtype=torch.int64)
    for chunk in images.split(256):  # in parts: as integers they need four times the memory of the pixels
        values = chunk.to(torch.int32)
        total = total + values.sum(dim=(0, 2, 3))
        squares = squares + values.square_().sum(dim=(0, 2, 3))
    mean = total.double() / count
    std = (squares.double() / count - mean.square()).clamp_(min=0).sqrt_()
    std[count * squares == total.square()] = 255
    return (mean / 255).float(), (std / 255).float()


def _fingerprint(*splits: Split, classes: int) -> str:
    digest = hashlib.sha256()
    if classes > 1 + max(int(split.labels.max()) for split in splits):
        digest.update(f"{classes} classes".encode())  # the labels do not tell
    for split in splits:
        if isinstance(split.images, ImageFiles):
            digest.update(_listing(split.images).encode())
        for tensor in (split.images, split.labels):
            if isinstance(tensor, Tensor):
                digest.update(repr((tuple(tensor.shape), str(tensor.dtype))).encode())
                digest.update(tensor.numpy().reshape(-1).data)
    return digest.hexdigest()[:16]


def _listing(images: ImageFiles) -> str:
    """What stands for pixels that would take an hour to read: how they are cut, the names and sizes of the files."""
    files = [(path.parent.name, path.name, path.stat().st_size) for path in images.paths]
    return repr((images.side, images.resize, files))
