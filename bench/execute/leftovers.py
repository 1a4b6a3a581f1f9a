"""What a run that was killed in the midst of a write has left in a results folder."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_OF_RECORDS = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")
"""The temporary names of `bench.records.files.write_atomically`."""

_OF_STATES = re.compile(r"\..+\.[0-9]+\.tmp")
"""Those of `bench.training.checkpoint.write_state`."""

SURELY_STALE = 3600.0
"""Seconds without a change, after which no write is under way."""


def remove_leftovers(results: Path) -> None:
    """Remove the temporary files of writes that never ended. To be called by who alone runs in `results`.

    Commands that are no run, such as `bench measure`, may be writing to some of the folders just now, and runs in
    another results folder to those that are links: there only what is old goes.
    """
    for folder, pattern, alone in _folders(results):
        for entry in _entries(folder):
            if pattern.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                with suppress(OSError):  # a write that has just ended
                    if alone or time.time() - entry.stat(follow_symlinks=False).st_mtime > SURELY_STALE:
                        os.unlink(entry.path)


def _folders(results: Path) -> Iterator[tuple[Path, re.Pattern[str], bool]]:
    """With the names to look for, and whether only a run writes there."""
    for name in ("train", "point"):
        yield results / name, _OF_RECORDS, not (results / name).is_symlink()
    for name in ("trained", "pretrained"):
        yield results / name, _OF_STATES, not (results / name).is_symlink()
    compact = results / "compact"
    for entry in _entries(compact):
        yield Path(entry.path), _OF_RECORDS, not (compact.is_symlink() or entry.is_symlink())
    for folder in (results, results / "measure", results / "report"):
        yield folder, _OF_RECORDS, False


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Of a folder that may not be there."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []
