"""Errors that end in one clear line, and the exit codes they end with."""

from __future__ import annotations

import difflib
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
