"""One run at a time in a results folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bench.errors import BadInput


@contextmanager
def alone_in(results: Path) -> Iterator[bool]:
    """Inside, no other run is: two would train the same cells, and write over each other's checkpoints. Raises BadInput
    where there is another. The lock is on the folder itself and ends with this process, however that ends; some network
    file systems know none, and False says so."""
    results.mkdir(parents=True, exist_ok=True)
    folder = os.open(results, os.O_RDONLY)
    held = False
    try:
        with suppress(OSError):
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held = True
            except BlockingIOError:
                raise BadInput(f"results folder {results}: another run is at work in it") from None
        yield held
    finally:
        os.close(folder)
