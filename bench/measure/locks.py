"""One measurement at a time on a graphics card, across processes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


@contextmanager
def alone_on(device: torch.device) -> Iterator[None]:
    """Wait until no other process of the suite times on this card, and keep it. Nothing to wait for on the
    CPU."""
    if device.type != "cuda":
        yield
        return
    with locked(
        Path(tempfile.gettempdir()) / f"sparsebench-{torch.cuda.get_device_properties(device).uuid}.lock"
    ):
        yield


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file at `path`, made if need be and left in place: removing it would let
    two processes lock two files of one name. The system lets go of the lock when the process ends, however it
    ends."""
    import fcntl

    try:
        file = os.open(path, os.O_RDONLY)  # may belong to another user: reading is enough for a lock
    except FileNotFoundError:
        file = os.open(path, os.O_RDONLY | os.O_CREAT, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)
