"""Data sets as folders of images: `folder/train/<class>/*.png` and `folder/test/<class>/*.png`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from bench.data.arrays import checked
from bench.data.split import RawData
from bench.errors import BadInput
from bench.folder import in_one_line

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".webp"})
GREY, COLOUR = frozenset({"1", "L", "LA"}), frozenset({"P", "RGB", "RGBA", "CMYK", "YCbCr"})


def read_image_folder(folder: Path) -> RawData:
    """Classes are the folders in `train`, numbered in the order of their names. All images have one size; one
    channel where all of them are grey, otherwise three (transparency is dropped). Other files are left alone.

    Raises BadInput naming the folder or file: a part missing, a class without images or not in train, a file
    that is no image or has more than 8 bits a channel, unequal sizes.
    """
    for part in ("train", "test"):
        if not (folder / part).is_dir():
            raise BadInput(f"{folder}: no folder {part!r} (expected {folder.name}/{part}/<class>/*.png)")
    classes = subfolders(folder / "train")
    if len(classes) < 2:
        raise BadInput(
            f"{folder / 'train'}: holds {len(classes)} folders, must hold one for each class, two at least"
        )
    unknown = sorted(set(subfolders(folder / "test")) - set(classes))
    if unknown:
        raise BadInput(f"{folder / 'test' / unknown[0]}: class {unknown[0]!r} is not in train")
    files = {part: files_of(folder / part, classes) for part in ("train", "test")}
    for label, name in enumerate(classes):
        if not any(of == label for _, of in files["train"]):
            raise BadInput(f"{folder / 'train' / name}: no images ({', '.join(sorted(SUFFIXES))})")
    if not files["test"]:
        raise BadInput(f"{folder / 'test'}: no images ({', '.join(sorted(SUFFIXES))})")
    mode = _common_mode([path for part in ("train", "test") for path, _ in files[part]], folder)
    arrays = {}
    for part, entries in files.items():
        arrays[f"x_{part}"] = (
            np.stack([_pixels(path, mode) for path, _ in entries]) if entries else np.empty(0)
        )
        arrays[f"y_{part}"] = np.array([label for _, label in entries], dtype=np.int64)
    return checked(str(folder), arrays, len(classes))


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in `folder` that are not hidden, sorted."""
    return sorted(
        entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )


def files_of(folder: Path, classes: list[str]) -> list[tuple[Path, int]]:
    """(file, label) of the images in the folders of `classes`, in the order of their names."""
    return [
        (path, label)
        for label, name in enumerate(classes)
        if (folder / name).is_dir()
        for path in sorted((folder / name).iterdir())
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    ]


def _common_mode(paths: list[Path], folder: Path) -> str:
    """`L` or `RGB`, from the headers alone, so that a folder that cannot be used is refused before it is
    decoded."""
    if not paths:
        raise BadInput(f"{folder}: no images in train and test")
    size, modes = None, set()
    for path in paths:
        try:
            with Image.open(path) as image:
                here, mode = image.size, image.mode
        except Exception as error:
            raise BadInput(f"{path}: is not a readable image ({in_one_line(error)})") from error
        if mode not in GREY | COLOUR:
            raise BadInput(f"{path}: has pixels of kind {mode!r}, must be 8 bits a channel, grey or colour")
        size = size or here
        if here != size:
            raise BadInput(
                f"{path}: is {here[0]}×{here[1]} pixels but {paths[0]} {size[0]}×{size[1]}; all must be equal"
            )
        modes.add(mode)
    return "L" if modes <= GREY else "RGB"


def _pixels(path: Path, mode: str) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert(mode))
    except Exception as error:
        raise BadInput(f"{path}: is not a readable image ({in_one_line(error)})") from error
