"""What a person sees while jobs run: a live display in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

if TYPE_CHECKING:
    from bench.execute.pool import Job
    from bench.records.times import Spent


class Display:
    """Watches the pool. A context manager; `title` names what runs, `jobs` is all of it. why: the reason of a job that
    failed, where the pool itself knows none: its record has it."""

    def __init__(
        self,
        title: str,
        jobs: list[Job[Any]],
        console: Console,
        why: Callable[[Job[Any]], str] = lambda job: "",
    ) -> None:
        self.console, self.title, self.why = console, title, why
        self.total = sum(job.weight for job in jobs) or 1.0
        self.count, self.done_jobs, self.failures = len(jobs), 0, 0
        self.done_weight = 0.0
        self.running: dict[str, tuple[float, float]] = {}
        self.began = time.monotonic()
        self.bars: dict[str, TaskID] = {}
        self.live: Progress | None = None

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            self.live = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=30),
                TextColumn("{task.percentage:>3.0f} %"),
                TextColumn("{task.fields[note]}", markup=False),
                console=self.console,
            )
            self.live.start()
            self.overall = self.live.add_task(self.title, total=1.0, note="")
        else:
            self.console.print(f"{self.title}: {self.count} to do", highlight=False, markup=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live is not None:
            self.live.stop()

    def started(self, job: Job[Any]) -> None:
        self.running[job.key] = (job.weight, 0.0)
        if self.live is not None:
            if job.key in self.bars:  # it begins anew
                self.live.remove_task(self.bars[job.key])
            self.bars[job.key] = self.live.add_task(f"  {job.title}", total=1.0, note="starting")

    def moved(self, job: Job[Any], fraction: float, doing: str) -> None:
        self.running[job.key] = (job.weight, fraction)
        if self.live is not None:
            self.live.update(self.bars[job.key], completed=fraction, note=doing)
            self._show_overall()

    def ended(self, job: Job[Any], ok: bool, reason: str) -> None:
        self.running.pop(job.key, None)
        self.done_weight += job.weight
        self.done_jobs += 1
        self.failures += not ok
        told = job.title
        if not ok and (reason := reason or self.why(job)):
            told = f"{job.title}: {' '.join(reason.split())}"
        if self.live is not None:
            self.live.remove_task(self.bars.pop(job.key))
            if not ok:
                self.live.console.print(f"failed: {told}", highlight=False, markup=False, soft_wrap=True)
            self._show_overall()
        else:
            word = "done  " if ok else "FAILED"
            line = f"[{self.done_jobs:>{len(str(self.count))}}/{self.count}] {word} {told}"
            self.console.print(f"{line} · {self._time_left()}", highlight=False, markup=False, soft_wrap=True)

    def _show_overall(self) -> None:
        assert self.live is not None
        note = f"{self.done_jobs}/{self.count} · {self._time_left()}"
        if self.failures:
            note += f" · {self.failures} failed"
        self.live.update(self.overall, completed=self._fraction(), note=note)

    def _fraction(self) -> float:
        under_way = sum(weight * fraction for weight, fraction in self.running.values())
        return min(1.0, (self.done_weight + under_way) / self.total)

    def _time_left(self) -> str:
        """From the pace so far; the planned costs of the jobs weigh it."""
        fraction, spent = self._fraction(), time.monotonic() - self.began
        if self.done_jobs == self.count:
            return f"took {in_words(spent)}"
        return f"about {in_words(spent / fraction - spent)} left" if fraction > 0.01 else "estimating"


def in_words(seconds: float) -> str:
    """A duration as a person says it."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"


def spent_in_words(spent: Spent) -> str:
    """What records took to make, in all and by part."""
    parts = [
        f"{name} {in_words(seconds)}"
        for name, seconds in (
            ("training", spent.training),
            ("shared pretraining", spent.pretraining),
            ("points", spent.points),
            ("latency", spent.latency),
        )
        if seconds
    ]
    said = f"measured {in_words(spent.total)} ({', '.join(parts)})" if parts else "none measured"
    return f"{said}, without {spent.untold} shared pretrainings that do not tell" if spent.untold else said
