"""Data sets in one `.npz` file: `x_train`, `y_train`, `x_test`, `y_test` and, optionally, `classes` (their
names)."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from bench.data.arrays import KEYS, checked
from bench.data.split import RawData
from bench.errors import BadInput
from bench.folder import in_one_line

LAYOUT = "x_train (N,H,W) or (N,H,W,C) uint8, y_train, x_test, y_test"

_DAMAGE = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, RuntimeError, MemoryError)
"""RuntimeError: encrypted, or said to be by a flipped bit, or packed in a way that Python does not know."""


def read_npz(path: Path, classes: int | None = None, augment: bool = False) -> RawData:
    """Reads and checks one file; nothing in it is ever unpickled. classes: how many the set is known to have.

    Raises BadInput naming the file and the key where it is missing or damaged.
    """
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    try:
        archive = np.load(path, allow_pickle=False)
    except _DAMAGE as error:
        raise BadInput(f"{path}: is not a readable .npz file ({in_one_line(error)})") from error
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise BadInput(f"{path}: is not a readable .npz file (it holds a single array)")
    with archive:
        for key in KEYS:
            if key not in archive:
                raise BadInput(
                    f"{path}: key {key!r} is missing; the file has: {', '.join(archive.files) or 'nothing'}"
                )
        arrays = {key: _read(path, archive, key) for key in KEYS}
        if "classes" in archive:
            names = _read(path, archive, "classes")
            if names.ndim != 1:
                raise BadInput(
                    f"{path}: classes has shape {names.shape}, must be (classes,): one name for each class"
                )
            classes = len(names) if classes is None else classes
    return checked(str(path), arrays, classes, augment)


def _read(path: Path, archive: np.lib.npyio.NpzFile, key: str) -> np.ndarray:
    try:
        return np.asarray(archive[key])
    except _DAMAGE as error:
        raise BadInput(f"{path}: {key} cannot be read ({in_one_line(error)})") from error
