"""What a user can get wrong about methods, each message one line that the command line shows as it stands; and a
network that cannot be evaluated."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UnknownMethod(ValueError):
    """No method has this name."""


class BadConfig(ValueError):
    """A setting that the method does not have, or a value that the setting does not take."""


class BadMethodFile(ValueError):
    """A file or entry point that gives no usable method."""


class NotFinite(ArithmeticError):
    """The logits of a network are infinite or no numbers: what a `validate` raises that cannot give a loss."""


def nearest(word: str, valid: Iterable[str]) -> str:
    """A hint to end a message with: ` (did you mean 'x'?)`, or all valid words where none is near."""
    words = sorted(valid)
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    if close:
        return f" (did you mean {close[0]!r}?)"
    return f" (valid: {', '.join(words)})" if words else ""
