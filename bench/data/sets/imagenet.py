"""ImageNet (ILSVRC 2012) from a folder: `<data root>/imagenet/train/<class>/*.JPEG` and `…/val/<class>/*.JPEG`.

There is no download: the images are given out by image-net.org on request. Their number does not fit in memory, so they
are decoded when they are used. The published validation images, which everybody tests on, are the test part; what the
suite calls validation is carved from train. Preprocessing and normalisation are those of torchvision's first weights:
shorter side 256, the middle 224 × 224.
"""

from __future__ import annotations

from pathlib import Path

import torch

from bench.data.image_files import ImageFiles
from bench.data.image_folder import files_of, subfolders
from bench.data.split import RawData, Split
from bench.errors import BadInput

SIDE, RESIZE = 224, 256
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VALIDATION_FRACTION = 0.02


def load_imagenet(root: Path | None) -> RawData:
    """Raises BadInput, saying what has to lie where, for a folder that is not there or has no images."""
    layout = "imagenet/train/<class>/*.JPEG and imagenet/val/<class>/*.JPEG"
    if root is None:
        raise BadInput(f"data set 'imagenet' needs a data root with {layout}: give --data-root or BENCH_DATA")
    folder = root / "imagenet"
    for part in ("train", "val"):
        if not (folder / part).is_dir():
            raise BadInput(
                f"{folder / part}: no such folder; data set 'imagenet' needs {layout} in the data root"
            )
    classes = subfolders(folder / "train")
    unknown = sorted(set(subfolders(folder / "val")) - set(classes))
    if unknown:
        raise BadInput(f"{folder / 'val' / unknown[0]}: class {unknown[0]!r} is not in train")
    train, test = (_split(folder / part, classes) for part in ("train", "val"))
    if len(classes) < 2 or not len(test):
        raise BadInput(f"{folder}: has {len(classes)} classes and {len(test)} images in val")
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    return RawData(train, test, len(classes), VALIDATION_FRACTION, augment=True, mean=mean, std=std)


def _split(folder: Path, classes: list[str]) -> Split:
    files = files_of(folder, classes)
    labels = torch.tensor([label for _, label in files], dtype=torch.int64)
    missing = sorted(set(range(len(classes))) - set(labels.tolist()))
    if missing and folder.name == "train":
        raise BadInput(f"{folder / classes[missing[0]]}: no images")
    return Split(ImageFiles(tuple(path for path, _ in files), SIDE, RESIZE), labels)


DATASETS = {"imagenet": load_imagenet}
