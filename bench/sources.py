"""The code of a method, as a record names it: the file that defines it, and what is in that."""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path

from methods.base import Method


def source_file(kind: type[Method], file: str | None) -> str:
    """Where a method is defined. file: that by whose path it came, if it did."""
    return file or inspect.getfile(kind)


def source_digest(file: str) -> str:
    """Of the file that defines a method."""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]
