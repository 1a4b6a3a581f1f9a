"""The small image sets that torchvision fetches; each also from `<name>.npz` in the data root, which comes
first."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.data.arrays import checked
from bench.data.download import fetch_into
from bench.data.npz import LAYOUT, read_npz
from bench.data.split import RawData
from bench.errors import BadInput
from bench.folder import in_one_line

MNIST_FILES = tuple(
    f"{part}-{what}-ubyte" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1")
)


@dataclass(frozen=True)
class VisionSet:
    """kind: class of torchvision.datasets. parts: the keyword arguments for the train and the test part.
    files: what torchvision keeps under the data root (a folder stands for all in it). augment: crops and
    flips keep the label."""

    name: str
    kind: str
    files: tuple[str, ...]
    classes: int = 10
    parts: tuple[tuple[str, Any], tuple[str, Any]] = (("train", True), ("train", False))
    augment: bool = False


SETS = (
    VisionSet("mnist", "MNIST", tuple(f"MNIST/raw/{file}" for file in MNIST_FILES)),
    VisionSet("fashion-mnist", "FashionMNIST", tuple(f"FashionMNIST/raw/{file}" for file in MNIST_FILES)),
    VisionSet("cifar10", "CIFAR10", ("cifar-10-batches-py",), augment=True),
    VisionSet("cifar100", "CIFAR100", ("cifar-100-python",), classes=100, augment=True),
    VisionSet(
        "svhn",
        "SVHN",
        ("train_32x32.mat", "test_32x32.mat"),
        parts=(("split", "train"), ("split", "test")),
    ),
)


def load_vision(vision: VisionSet, root: Path | None) -> RawData:
    """From `<root>/<name>.npz`, else from torchvision's files under `root`, else downloaded there first
    (checksums are torchvision's). Raises BadInput, saying how to get the set, where that fails."""
    how = f"give a folder with {vision.name}.npz ({LAYOUT}) by --data-root or BENCH_DATA"
    if root is None:
        raise BadInput(f"data set {vision.name!r} needs a data root: {how}, or any folder to download into")
    if root.exists() and not root.is_dir():
        raise BadInput(f"data root {root}: is not a folder")
    npz = root / f"{vision.name}.npz"
    if npz.exists():
        return read_npz(npz, vision.classes, vision.augment)
    missing = [root / file for file in vision.files if not (root / file).exists()]
    if missing:
        try:
            fetch_into(root, vision.files, partial(_torchvision, vision, download=True), vision.name)
        except Exception as error:
            raise BadInput(
                f"data set {vision.name!r}: neither {npz} nor {missing[0]} is there and the "
                f"download failed ({in_one_line(error)}); {how}"
            ) from error
    where = root / Path(vision.files[0]).parent if len(vision.files) > 1 else root / vision.files[0]
    try:
        arrays = _torchvision(vision, root, download=False)
    except Exception as error:
        raise BadInput(
            f"{where}: the files of {vision.name!r} are damaged ({in_one_line(error)}); "
            "take them away to download anew"
        ) from error
    return checked(str(where), arrays, vision.classes, vision.augment)


def _torchvision(vision: VisionSet, root: Path, download: bool) -> dict[str, np.ndarray]:
    import torchvision.datasets  # here: it takes a second, and most runs do not need it

    arrays = {}
    for part, (keyword, value) in zip(("train", "test"), vision.parts, strict=True):
        data = getattr(torchvision.datasets, vision.kind)(root, download=download, **{keyword: value})
        images = np.asarray(data.data)
        arrays[f"x_{part}"] = np.moveaxis(images, 1, 3) if vision.kind == "SVHN" else images
        arrays[f"y_{part}"] = np.asarray(data.labels if vision.kind == "SVHN" else data.targets)
    return arrays


DATASETS = {vision.name: partial(load_vision, vision) for vision in SETS}
