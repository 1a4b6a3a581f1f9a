"""Measuring many points: one network at a time, while nothing else runs. No torch here; the worker has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.execute.pool import Job, run_jobs
from bench.execute.progress import Display
from bench.execute.worker import MeasureTask
from bench.records.schema import Failure
from bench.records.store import Store

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Wanted:
    """A point to measure. results: the folder that holds its record and its compact network; id: of the measurement;
    title: what a person sees."""

    results: Path
    point_id: str
    id: str
    title: str


def measure_all(
    title: str,
    wanted: Sequence[Wanted],
    device: str,
    preset: str,
    console: Console,
    retry_failed: bool = False,
) -> int:
    """Measure what has no record yet; how many there were to do."""
    finished = {"done"} if retry_failed else {"done", "failed"}
    jobs = [
        Job(one.id, MeasureTask(one.point_id, one.results, device, preset), one.title, 1.0)
        for one in wanted
        if Store(one.results).status("measure", one.id) not in finished
    ]

    def on_lost(task: MeasureTask, kind: str, reason: str) -> None:
        import torch

        from bench.execute.measuring import record_lost

        failure = Failure(kind=kind, reason=reason)
        record_lost(task.point_id, task.results, torch.device(device), preset, failure)

    def why(job: Job[MeasureTask]) -> str:
        return Store(job.task.results).reason("measure", job.key)

    if jobs:
        with Display(title, jobs, console, why) as display:
            run_jobs(jobs, 1, display, on_lost=on_lost)
    return len(jobs)
