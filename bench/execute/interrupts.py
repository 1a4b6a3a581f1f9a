"""The signals that end a run."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""Of `kill` and of batch systems; of a terminal that is closed."""


@contextmanager
def signals_interrupt() -> Iterator[None]:
    """Inside, these signals interrupt as Ctrl-C does, so that what was started is ended too: processes, and the service
    by which they share a GPU. Only the first one: those that follow would break off just that. One that is ignored, as
    under nohup, stays so."""
    mine = [number for number in SIGNALS if signal.getsignal(number) is signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():  # which may set no handler
        mine = []

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        for each in mine:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in mine:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, signal.SIG_DFL)
