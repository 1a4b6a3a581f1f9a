"""What a person sees: a live display in a terminal, plain lines in a pipe."""

from __future__ import annotations

import os
import pty
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.execute.pool import Job
from bench.execute.progress import Display


@dataclass(frozen=True)
class Nothing:
    def run(self, report: Any) -> bool:
        return True


def play(console: Console) -> None:
    """Two jobs: one goes well, one does not."""
    jobs = [Job(key, Nothing(), f"cell {key}", 1.0) for key in ("a", "b")]
    with Display("suite", jobs, console) as display:
        for job, ok in zip(jobs, (True, False), strict=True):
            display.started(job)
            display.moved(job, 0.5, "pretrain")
            display.ended(job, ok, "" if ok else "exit code 7")


def read_all(master: int, pieces: list[bytes]) -> None:
    """Until the other end closes, which Linux tells by an error and others by nothing more to read."""
    with suppress(OSError):
        while piece := os.read(master, 1 << 16):
            pieces.append(piece)


def test_a_terminal_gets_a_live_display() -> None:
    master, slave = pty.openpty()
    pieces: list[bytes] = []
    reader = threading.Thread(target=read_all, args=(master, pieces))
    reader.start()
    with os.fdopen(slave, "w") as terminal:
        play(Console(file=terminal, width=120, force_terminal=None))
    reader.join(timeout=30)
    os.close(master)
    text = b"".join(pieces).decode()
    assert "\x1b[" in text
    assert "2/2" in text
    assert "failed: cell b: exit code 7" in text
    assert "1 failed" in text
    assert "[1/2] done" not in text


def test_a_pipe_gets_plain_lines(tmp_path: Path) -> None:
    read, written = os.pipe()
    with os.fdopen(written, "w") as pipe:
        play(Console(file=pipe, width=120))
    with os.fdopen(read) as pipe:
        lines = pipe.read().splitlines()
    assert lines[0] == "suite: 2 to do"
    assert lines[1].startswith("[1/2] done   cell a · about")
    assert lines[2].startswith("[2/2] FAILED cell b: exit code 7 · took")
    assert len(lines) == 3
    assert "\x1b" not in "".join(lines)


def test_a_reason_that_only_the_record_has(tmp_path: Path) -> None:
    job = Job("a", Nothing(), "cell a", 1.0)
    path = tmp_path / "told"
    with (
        path.open("w") as file,
        Display(
            "suite", [job], Console(file=file, width=40), lambda job: f"error: {job.key}\ntwice"
        ) as display,
    ):
        display.started(job)
        display.ended(job, False, "")
    assert path.read_text().splitlines()[1].startswith("[1/1] FAILED cell a: error: a twice · took")
