"""What runs inside a worker process: tasks in, progress and outcomes out, over one pipe."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path

from bench.cells import Cell
from bench.errors import DiskFull, GpuLost


@contextmanager
def _threads_of(cell: Cell) -> Iterator[None]:
    """Those that the workload asks for beyond what the process has."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(max(before, cell.workload.cpu.threads))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class CellTask:
    """Run a cell."""

    cell: Cell
    results: Path
    data_root: Path | None
    device: str
    retry_failed: bool

    def run(self, report: Callable[[float, str], None]) -> bool:
        from bench.device import use
        from bench.execute.cell import CellRun

        run = CellRun(self.cell, self.results, self.data_root, use(self.device), report)
        with _threads_of(self.cell):
            return run.run(self.retry_failed)


@dataclass(frozen=True)
class PretrainTask:
    """Run the plain training that `cell` shares with others."""

    cell: Cell
    results: Path
    data_root: Path | None
    device: str

    def run(self, report: Callable[[float, str], None]) -> bool:
        from bench.device import use
        from bench.execute.cell import CellRun

        run = CellRun(self.cell, self.results, self.data_root, use(self.device), report)
        with _threads_of(self.cell):
            return run.run_pretraining()


@dataclass(frozen=True)
class MeasureTask:
    """Measure the latency of one compact network."""

    point_id: str
    results: Path
    device: str
    preset: str

    def run(self, report: Callable[[float, str], None]) -> bool:
        from bench.device import use
        from bench.execute.measuring import measure_point

        return measure_point(self.point_id, self.results, use(self.device), self.preset)


AnyTask = CellTask | PretrainTask | MeasureTask


def work(pipe: Connection, threads: int = 1) -> None:
    """Serve tasks, with so many torch threads, until the pipe closes or the GPU no longer answers this process. The
    parent alone answers to Ctrl-C, and it has said which files are skipped; that one is set aside is news."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.getLogger("bench.records").addFilter(lambda record: "skipped" not in record.msg)
    end_with_parent()
    import torch

    import bench.execute.cell  # noqa: F401 (seconds, which no time-out of a cell should count)
    from bench.execute.outcome import describe_failure
    from bench.training.memory import free_unused

    collected = _Collected()
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)  # decaying weights would otherwise slow a step many times over

    def tell(kind: str, value: float | bool, text: str) -> None:
        try:
            pipe.send((kind, value, text))
        except OSError:  # the parent is gone; nobody waits for the result
            os._exit(1)

    while True:
        try:
            task: AnyTask = pipe.recv()
        except (EOFError, OSError):
            return
        tell("began", 0.0, "")
        try:
            well = _run(task, partial(tell, "progress"))
        except GpuLost as lost:
            tell("gpu", False, str(lost))
            os._exit(1)
        except DiskFull as full:
            tell("disk", False, str(full))
            os._exit(1)
        except Exception as error:  # of the device or the disk: a cell records its own
            traceback.print_exc()
            tell("error", False, describe_failure(error).reason)
            os._exit(1)
        if not free_unused():
            tell("left", well, "")
            os._exit(1)  # what torch does when a process ends would fail too, and say so at length
        collected.leave_out_imported()
        tell("ended", well, "")


class _Collected:
    """What the collection after every task looks through: not what has been imported, which stays, and to look through
    it took a tenth of a second each time. A first task imports most of it."""

    def __init__(self) -> None:
        self.modules = 0
        self.leave_out_imported()

    def leave_out_imported(self) -> None:
        """Right after a collection: what there is by then would have stayed anyway."""
        if len(sys.modules) > self.modules:
            self.modules = len(sys.modules)
            gc.freeze()


def _run(task: AnyTask, report: Callable[[float, str], None]) -> bool:
    """Raises GpuLost also where the GPU was lost before the task began: to take it up is what fails first. Raises
    DiskFull also where it was the record that found no room."""
    from bench.execute.memory import raise_if_lost
    from bench.execute.process_state import restored

    try:
        with restored():
            return task.run(report)
    except (GpuLost, DiskFull):
        raise
    except Exception as error:
        raise_if_lost(error)
        raise


def end_with_parent() -> None:
    """Leave where the parent is gone. A parent that was killed ends nobody, and who is at work looks at no pipe."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
