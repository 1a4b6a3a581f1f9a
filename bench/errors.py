"""Errors that end in one clear line, and the exit codes they end with."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Collection, Iterable

EXIT_DONE, EXIT_BAD_INPUT, EXIT_SOME_FAILED = 0, 2, 3


class BadInput(Exception):
    """The user gave something that cannot be used. The message is one line that names the file, the key and, where
    there is one, the nearest valid word. Raised before anything is written; the command line exits with 2."""


class CellFailed(Exception):
    """A cell cannot give a result (diverged, collapsed, not equal to its masked reference). Becomes a failed record;
    `kind` is the word the tables show."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


class GpuLost(Exception):
    """The GPU no longer answers this process. It may be another's fault: processes that share a GPU by MPS lose it
    together."""


class DiskFull(Exception):
    """The disk takes no more of what a cell writes, which says nothing of the cell. The message is one line."""


def raise_if_disk_full(error: Exception) -> None:
    """Raise DiskFull where that is what `error` says: of a disk, a quota, or a limit for files."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
        raise DiskFull(system_error(error)) from error


def system_error(error: OSError) -> str:
    """What the system said, and of which file where it tells, in one line; of a long name the beginning."""
    said = " ".join((error.strerror or str(error) or type(error).__name__).split())
    name = " ".join(str(error.filename).split())
    return said if error.filename is None else f"{name[:200]}{'…' * (len(name) > 200)}: {said}"


def nearest(word: str, valid: Iterable[str]) -> str:
    """A hint for an unknown word: ` (did you mean 'x'?)`, or the valid words where none is near."""
    words = sorted(valid)
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    if close:
        return f" (did you mean {close[0]!r}?)"
    return f" (valid: {', '.join(words)})" if words else ""


def nearest_number(number: float, valid: Collection[float]) -> str:
    """The same hint for a number."""
    if not valid:
        return ""
    return f" (did you mean {min(valid, key=lambda other: abs(other - number)):g}?)"
