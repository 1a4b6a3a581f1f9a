"""A pool of processes on this machine.

A worker that dies (out of memory, kill) loses its task and nothing else: the task counts as dead and another worker
takes its place. So it does where a worker leaves by itself, as its GPU no longer answers it. A task that was cut off by
that is tried once more, alone: one that shares a GPU by MPS loses it by any other's fault, time-out or end. So do the
workers that are idle, who do not say so: all of them are replaced before anything starts again. And none starts while
there is still one at work, for the service takes no newcomer until all who had the fault are gone.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Generic, Protocol, TypeVar

from bench.errors import BadInput
from bench.execute.interrupts import SIGNALS
from bench.execute.worker import work

CELLS_PER_GPU = 8
"""How many cells share a GPU where `--jobs` says nothing: a network of MNIST's size leaves most of it idle. Side by
side on an H200, four cells of the 300-100 trained twice as many epochs in a second as one, four of LeNet-5 1.5 times,
eight 2.3 times as many. Each process has a CUDA context and a copy of the data set of its own in its memory. Only one
does where images are decoded from files as they are needed: such images, and the networks for them, fill a GPU, and all
cores decode for one cell."""

NOTHING: Mapping[str, str] = {}

_SENT_TO_ALL = [-number for number in SIGNALS]
"""Exit codes of what goes to a group of processes at the same time, and to this one perhaps last."""


class Task(Protocol):
    def run(self, report: Callable[[float, str], None]) -> bool: ...


T = TypeVar("T", bound=Task)


@dataclass(frozen=True)
class Job(Generic[T]):
    """key: what it makes that others may wait for. needs: keys of jobs that have to end first."""

    key: str
    task: T
    title: str
    weight: float
    needs: tuple[str, ...] = ()


class Watcher(Protocol):
    """Told what goes on; the progress display is one."""

    def started(self, job: Job[T]) -> None: ...
    def moved(self, job: Job[T], fraction: float, doing: str) -> None: ...
    def ended(self, job: Job[T], ok: bool, reason: str) -> None: ...


class _Worker(Generic[T]):
    def __init__(self, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe: Connection
        self.pipe, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=work, args=(theirs, threads), daemon=True)
        self.process.start()
        theirs.close()
        self.job: Job[T] | None = None
        self.began: float | None = None
        """When the process took up the job: it starts for seconds before its first one, which no timeout counts."""
        self.left = False
        """Whether it takes no further job, as its GPU no longer answers it."""

    def give(self, job: Job[T]) -> None:
        self.job, self.began = job, None
        with suppress(OSError):  # a process that has died just now: the next look at its pipe says so
            self.pipe.send(job.task)

    def stop(self) -> None:
        """An idle worker leaves by itself when its pipe closes; one at work is ended."""
        with suppress(OSError):
            self.pipe.close()
        if self.job is None:
            self.process.join(timeout=5)
        self.end()

    def end(self) -> None:
        """What it has said until then can still be read."""
        self.process.terminate()
        self.process.join(timeout=5)
        self.process.kill()  # one that does not listen
        self.process.join()


def run_jobs(
    jobs: Sequence[Job[T]],
    workers: int,
    watcher: Watcher,
    timeout: float | None = None,
    on_lost: Callable[[T, str, str], None] = lambda task, kind, reason: None,
    threads: int = 1,
    shared_gpu: Mapping[str, str] = NOTHING,
) -> bool:
    """Run `jobs` in their order as far as `needs` allow, on `workers` processes of `threads` torch threads each.

    timeout: seconds for one job. on_lost: told of each task whose worker died or ran out of time, with the word for
    the tables (`killed`, `timeout`, `gpu`, `error`) and the reason; its process writes nothing more by then.
    shared_gpu: what is in the environment of workers that share one (see `side_by_side`). True when every job ended
    well. Raises BadInput where the disk is full: all jobs end there.
    """
    waiting, done, cut_off = list(jobs), set[str](), set[str]()
    busy: dict[Connection, _Worker[T]] = {}
    keys = {job.key for job in jobs}
    all_well = True
    gpu_lost = doubtful = False  # the GPU by one that is at work; perhaps by those that are idle

    def may_start(job: Job[T]) -> bool:
        under_way = {worker.job.key for worker in busy.values() if worker.job}
        alone = not cut_off.isdisjoint({job.key, *under_way})
        return not (set(job.needs) & keys) - done and not (alone and busy)

    def fresh() -> _Worker[T]:
        with child_environment(threads, shared_gpu):
            return _Worker(threads)

    def replace(worker: _Worker[T]) -> _Worker[T]:
        worker.stop()
        team[team.index(worker)] = other = fresh()
        return other

    team = [fresh() for _ in range(min(workers, len(jobs)))]
    try:
        while waiting or busy:
            if doubtful and waiting and not (gpu_lost and busy):
                for worker in [w for w in team if w.job is None and w.began is not None]:
                    replace(worker)
                gpu_lost = doubtful = False
            for worker in [w for w in team if w.job is None and not gpu_lost]:
                job = next(filter(may_start, waiting), None)
                if job is not None:
                    if not worker.process.is_alive():  # died while it was idle: no job's fault
                        worker = replace(worker)
                    waiting.remove(job)
                    worker.give(job)
                    busy[worker.pipe] = worker
                    watcher.started(job)
            for worker, ok, kind, reason in _outcomes(busy, watcher, timeout):
                job = worker.job
                assert job is not None
                if kind == "disk":  # the next one would end no better
                    raise BadInput(f"{reason}; where there is room again, the same command goes on from here")
                del busy[worker.pipe]
                again = kind == "gpu" and job.key not in cut_off
                if again:
                    cut_off.add(job.key)
                    waiting.append(job)
                else:
                    done.add(job.key)
                if kind and not again:
                    on_lost(job.task, kind, reason)
                if kind or worker.left:
                    if waiting:
                        replace(worker)
                    else:
                        worker.stop()
                        team.remove(worker)
                worker.job = None
                gpu_lost |= kind == "gpu" or worker.left
                doubtful |= gpu_lost or bool(shared_gpu and kind)
                if not again:
                    watcher.ended(job, ok, reason)
                    all_well &= ok
    finally:
        for worker in team:
            worker.stop()
    return all_well


def processes(device: str, asked: int | None, reads_files: bool = False) -> int:
    """How many cells run at once on `device`, a torch device: as many as were asked for, else one for each core, on a
    GPU at most CELLS_PER_GPU, and one alone where a cell reads its images from files."""
    if asked is not None:
        return asked
    if not device.startswith("cuda"):
        return _cores()
    return 1 if reads_files else min(_cores(), CELLS_PER_GPU)


def threads_each(device: str, workers: int) -> int:
    """Of each process. Results on a CPU are those of one thread, unless a workload asks for more: sums over several
    come out in another order."""
    return cores_each(workers) if device.startswith("cuda") else 1


def cores_each(workers: int) -> int:
    """For each of so many processes."""
    return max(1, _cores() // workers)


def _cores() -> int:
    """Those that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _outcomes(
    busy: dict[Connection, _Worker[T]], watcher: Watcher, timeout: float | None
) -> Iterator[tuple[_Worker[T], bool, str, str]]:
    """Jobs that ended since the last look: worker, whether it went well, and for a lost one the kind and reason."""
    ready = wait(list(busy), timeout=0.2)
    for worker in list(busy.values()):
        end = _listen(worker, watcher) if worker.pipe in ready else None
        if end is None and timeout and worker.began is not None and time.monotonic() - worker.began > timeout:
            worker.end()  # before anything is recorded in its place: until then it may write a record itself
            while end is None and worker.pipe.poll():
                end = _listen(worker, watcher)
            if end is None or end[1] == "killed":
                end = False, "timeout", f"not done within {timeout:g} s"
        if end is not None:
            yield worker, *end


def _listen(worker: _Worker[T], watcher: Watcher) -> tuple[bool, str, str] | None:
    """The next thing that it says, or that it is gone: whether its job went well, the kind and the reason, where the
    job has ended by that."""
    assert worker.job is not None
    try:
        kind, value, text = worker.pipe.recv()
    except (EOFError, OSError):
        worker.process.join(timeout=5)
        if worker.process.exitcode in _SENT_TO_ALL:
            time.sleep(1)  # for it to reach this process, where it is not the worker that is meant
        return False, "killed", f"the process ended with exit code {worker.process.exitcode}"
    if kind == "began":
        worker.began = time.monotonic()
    elif kind == "progress":
        watcher.moved(worker.job, value, text)
    elif kind in ("gpu", "disk", "error"):
        return False, kind, text
    else:
        worker.left = kind == "left"
        return value, "", ""
    return None


KEEP_FREED_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**32)}
"""For glibc: memory that was freed stays with the process. Otherwise the pages of large feature maps go back to the
system after every step and are cleared anew in the next: a quarter of the time of a training step of LeNet-5."""


@contextmanager
def child_environment(threads: int = 1, shared_gpu: Mapping[str, str] = NOTHING) -> Iterator[None]:
    """What a child reads when it starts: the thread count of its numeric libraries, to keep freed memory, where its GPU
    is shared, and not to complain that one that was ended in its work has left semaphores behind (they are put away).
    """
    warnings = [os.environ.get("PYTHONWARNINGS"), "ignore:resource_tracker"]
    settings = {
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads)),
        "PYTHONWARNINGS": ",".join(filter(None, warnings)),
        **KEEP_FREED_MEMORY,
        **shared_gpu,
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
