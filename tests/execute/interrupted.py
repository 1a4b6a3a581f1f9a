"""A run on a shared GPU as `bench run` does it, to be interrupted: `python -m tests.execute.interrupted FILE`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.execute import gpu_sharing
from bench.execute.gpu_sharing import side_by_side
from bench.execute.interrupts import signals_interrupt
from bench.execute.pool import Job, run_jobs


@dataclass(frozen=True)
class Long:
    """Leaves a file with its process."""

    path: Path

    def run(self, report: Callable[[float, str], None]) -> bool:
        self.path.with_suffix(".part").write_text(str(os.getpid()))
        self.path.with_suffix(".part").rename(self.path)
        time.sleep(60)
        return True


class Unwatched:
    def started(self, job: Job[Any]) -> None: ...
    def moved(self, job: Job[Any], fraction: float, doing: str) -> None: ...
    def ended(self, job: Job[Any], ok: bool, reason: str) -> None: ...


def lost(task: Long, kind: str, reason: str) -> None:
    task.path.with_suffix(".lost").write_text(kind)


@signals_interrupt()
def main() -> None:
    gpu_sharing.PROBE = ""
    with side_by_side("cuda", 2) as shared:
        jobs = [Job("long", Long(Path(sys.argv[1])), "", 1.0)]
        run_jobs(jobs, 1, Unwatched(), on_lost=lost, shared_gpu=shared)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
