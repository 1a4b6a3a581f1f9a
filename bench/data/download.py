"""Downloads that either arrive whole or leave no trace."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

SILENCE_SECONDS = 15.0
"""How long a server may say nothing before it counts as gone."""


def fetch_into(root: Path, files: tuple[str, ...], fetch: Callable[[Path], object], what: str) -> None:
    """Let `fetch` download into a folder of its own, then move `files` (relative; files or folders) to
    `root`.

    The folder lies beside `root`, on the same disk, so that a move is a rename: another process sees a file
    whole or not at all. What is there already stays. Raises what `fetch` or the disk raises; `root` is then
    as it was.
    """
    beside = next(folder for folder in (root, *root.absolute().parents) if folder.is_dir())
    with tempfile.TemporaryDirectory(prefix=f".{what}-", dir=beside) as name:
        temporary = Path(name)
        print(f"downloading {what} to {root}", file=sys.stderr, flush=True)
        bar = io.StringIO()  # torchvision draws its own, which would tear up a live display
        with _silence_is_an_error(), contextlib.redirect_stdout(bar), contextlib.redirect_stderr(bar):
            fetch(temporary)
        for file in files:
            target = root / file
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                try:
                    os.replace(temporary / file, target)
                except OSError:  # a folder that another process was quicker to move
                    if not target.exists():
                        raise


@contextlib.contextmanager
def _silence_is_an_error() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
