"""The pool runs what is ready, keeps going when a worker dies, and stops what takes too long."""

from __future__ import annotations

import errno
import gc
import os
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bench.errors import BadInput, GpuLost
from bench.execute import pool
from bench.execute.pool import Job, processes, run_jobs, threads_each


@dataclass(frozen=True)
class Touch:
    """Leaves a file with the time; needs are seen by the order of the times."""

    path: Path
    ok: bool = True

    def run(self, report: Callable[[float, str], None]) -> bool:
        report(0.5, "half way")
        self.path.write_text(str(time.time_ns()))
        return self.ok


@dataclass(frozen=True)
class Die:
    def run(self, report: Callable[[float, str], None]) -> bool:
        os._exit(9)


@dataclass(frozen=True)
class FillDisk:
    def run(self, report: Callable[[float, str], None]) -> bool:
        raise OSError(errno.ENOSPC, "No space left on device", "/full/of\nit")


@dataclass(frozen=True)
class DieAfter:
    """Once the other has ended."""

    other: Path

    def run(self, report: Callable[[float, str], None]) -> bool:
        while not self.other.exists():
            time.sleep(0.1)
        time.sleep(1)
        os._exit(9)


@dataclass(frozen=True)
class Fail:
    """After it, the GPU answers as `error` says, for as long as the process lives."""

    path: Path
    error: str

    def run(self, report: Callable[[float, str], None]) -> bool:
        import torch

        def synchronize(device: Any = None) -> None:
            raise RuntimeError(self.error)

        torch.cuda.is_initialized = lambda: True
        torch.cuda.synchronize = synchronize
        self.path.write_text(str(os.getpid()))
        return False


@dataclass(frozen=True)
class LoseGpu:
    """The first `times` times that it runs; what it finds in `beside` when it does not."""

    folder: Path
    times: int

    def run(self, report: Callable[[float, str], None]) -> bool:
        tries = len(list(self.folder.glob("try-*")))
        (self.folder / f"try-{tries}").touch()
        if tries < self.times:
            raise GpuLost("the GPU no longer answered")
        (self.folder / "beside").write_text(str((self.folder / "running").exists()))
        return True


@dataclass(frozen=True)
class Run:
    """Leaves a file for as long as it runs."""

    folder: Path

    def run(self, report: Callable[[float, str], None]) -> bool:
        (self.folder / "running").touch()
        time.sleep(6)
        (self.folder / "running").unlink()
        return True


@dataclass(frozen=True)
class LookWhoRuns:
    folder: Path

    def run(self, report: Callable[[float, str], None]) -> bool:
        (self.folder / "who").write_text(str((self.folder / "running").exists()))
        return True


CONTEXTS: list[float] = []
"""Of this process: when it took up the GPU."""


@dataclass(frozen=True)
class UseGpu:
    """A process that has taken it up before the fault finds it dead. faulty: whether this task makes the fault, the
    first time, once the other has ended."""

    folder: Path
    faulty: bool

    def run(self, report: Callable[[float, str], None]) -> bool:
        fault, other = self.folder / "fault", self.folder / "ended"
        if not CONTEXTS:
            CONTEXTS.append(time.time())
        if self.faulty and not fault.exists():
            while not other.exists():
                time.sleep(0.1)
            time.sleep(1)  # the other's worker is idle by now
            fault.touch()
        if fault.exists() and fault.stat().st_mtime > CONTEXTS[0]:
            raise GpuLost("the GPU no longer answered")
        other.touch()
        return True


@dataclass(frozen=True)
class TellProcess:
    path: Path

    def run(self, report: Callable[[float, str], None]) -> bool:
        self.path.write_text(str(os.getpid()))
        return True


@dataclass(frozen=True)
class Sleep:
    def run(self, report: Callable[[float, str], None]) -> bool:
        time.sleep(60)
        return True


@dataclass(frozen=True)
class Chat:
    """Reports all the time."""

    path: Path

    def run(self, report: Callable[[float, str], None]) -> bool:
        self.path.write_text(str(os.getpid()))
        for _ in range(600):
            report(0.5, "half way")
            time.sleep(0.05)
        return True


@dataclass(frozen=True)
class Stumble:
    """As where the device cannot be taken up, or the disk is full."""

    error: str

    def run(self, report: Callable[[float, str], None]) -> bool:
        raise RuntimeError(self.error)


class Watch:
    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []
        self.outcomes: dict[str, bool] = {}

    def started(self, job: Job[Any]) -> None:
        self.seen.append(("started", job.key))

    def moved(self, job: Job[Any], fraction: float, doing: str) -> None:
        assert (fraction, doing) == (0.5, "half way")
        self.seen.append(("moved", job.key))

    def ended(self, job: Job[Any], ok: bool, reason: str) -> None:
        self.seen.append(("ended", job.key))
        self.outcomes[job.key] = ok


def test_order_needs_and_outcomes(tmp_path: Path) -> None:
    jobs = [
        Job("b", Touch(tmp_path / "b"), "b", 1.0, needs=("a",)),
        Job("a", Touch(tmp_path / "a"), "a", 1.0, needs=("not in this run",)),
        Job("c", Touch(tmp_path / "c", ok=False), "c", 1.0),
    ]
    watch = Watch()
    assert not run_jobs(jobs, 2, watch)
    assert watch.outcomes == {"a": True, "b": True, "c": False}
    assert int((tmp_path / "a").read_text()) < int((tmp_path / "b").read_text())
    assert ("moved", "a") in watch.seen


def test_a_worker_that_dies_costs_its_task_alone(tmp_path: Path) -> None:
    lost: list[tuple[Any, str, str]] = []
    jobs: list[Job[Any]] = [Job("die", Die(), "die", 1.0)]
    jobs += [Job(str(at), Touch(tmp_path / str(at)), "", 1.0, needs=("die",)) for at in range(3)]
    watch = Watch()
    well = run_jobs(jobs, 2, watch, on_lost=lambda task, kind, reason: lost.append((task, kind, reason)))
    assert not well
    assert lost == [(Die(), "killed", "the process ended with exit code 9")]
    assert watch.outcomes == {"die": False, "0": True, "1": True, "2": True}


@pytest.mark.parametrize(
    ("error", "replaced"),
    [("CUDA error: device-side assert triggered", True), ("CUDA error: out of memory", False)],
)
def test_a_worker_whose_gpu_no_longer_answers_is_replaced(error: str, replaced: bool, tmp_path: Path) -> None:
    lost: list[str] = []
    jobs: list[Job[Any]] = [Job("fail", Fail(tmp_path / "fail", error), "", 1.0)]
    jobs.append(Job("next", TellProcess(tmp_path / "next"), "", 1.0, needs=("fail",)))
    watch = Watch()
    run_jobs(jobs, 1, watch, on_lost=lambda task, kind, reason: lost.append(kind))
    assert watch.outcomes == {"fail": False, "next": True}
    assert ((tmp_path / "fail").read_text() != (tmp_path / "next").read_text()) == replaced
    assert not lost  # it has left its records itself


@pytest.mark.parametrize("times", [1, 2])
def test_what_was_cut_off_is_tried_once_more_and_alone(times: int, tmp_path: Path) -> None:
    lost: list[tuple[str, str]] = []
    jobs: list[Job[Any]] = [
        Job("lose", LoseGpu(tmp_path, times), "", 1.0),
        Job("run", Run(tmp_path), "", 1.0),
    ]
    jobs.append(Job("next", Touch(tmp_path / "next"), "", 1.0, needs=("lose",)))
    jobs.append(Job("who", LookWhoRuns(tmp_path), "", 1.0))
    watch = Watch()
    run_jobs(jobs, 2, watch, on_lost=lambda task, kind, reason: lost.append((kind, reason)))
    assert watch.outcomes == {"lose": times == 1, "run": True, "next": True, "who": True}
    assert lost == ([] if times == 1 else [("gpu", "the GPU no longer answered")])
    assert len(list(tmp_path.glob("try-*"))) == 2
    assert times == 2 or (tmp_path / "beside").read_text() == "False"
    assert (tmp_path / "who").read_text() == "False"  # nothing starts beside one that may have lost it too


def test_a_worker_that_was_idle_at_the_fault_takes_no_other_task(tmp_path: Path) -> None:
    lost: list[str] = []
    jobs: list[Job[Any]] = [Job(str(at), UseGpu(tmp_path, faulty=at > 0), "", 1.0) for at in (0, 1)]
    watch = Watch()
    run_jobs(jobs, 2, watch, on_lost=lambda task, kind, reason: lost.append(kind))
    assert watch.outcomes == {"0": True, "1": True}
    assert not lost


@pytest.mark.parametrize("shared", [{}, {"CUDA_MPS_PIPE_DIRECTORY": "/somewhere"}])
def test_the_end_of_one_costs_others_the_gpu_that_they_share(shared: dict[str, str], tmp_path: Path) -> None:
    jobs: list[Job[Any]] = [Job("before", TellProcess(tmp_path / "before"), "", 1.0)]
    jobs.append(Job("die", DieAfter(tmp_path / "before"), "", 1.0))
    jobs.append(Job("after", TellProcess(tmp_path / "after"), "", 1.0, needs=("die",)))
    run_jobs(jobs, 2, Watch(), shared_gpu=shared)
    assert ((tmp_path / "before").read_text() != (tmp_path / "after").read_text()) == bool(shared)


def test_what_takes_too_long_is_stopped(tmp_path: Path) -> None:
    lost: list[str] = []
    jobs: list[Job[Any]] = [Job("slow", Sleep(), "slow", 1.0), Job("next", Touch(tmp_path / "next"), "", 1.0)]
    began = time.monotonic()
    run_jobs(jobs, 1, Watch(), timeout=8.0, on_lost=lambda task, kind, reason: lost.append(kind))
    assert lost == ["timeout"]
    assert (tmp_path / "next").exists()
    assert time.monotonic() - began < 60


def test_what_reports_all_the_time_is_stopped_too_before_it_is_recorded(tmp_path: Path) -> None:
    lost: list[str] = []

    def on_lost(task: Chat, kind: str, reason: str) -> None:
        lost.append(kind)
        with pytest.raises(ProcessLookupError):
            os.kill(int(task.path.read_text()), 0)

    run_jobs([Job("chat", Chat(tmp_path / "pid"), "", 1.0)], 1, Watch(), timeout=0.5, on_lost=on_lost)
    assert lost == ["timeout"]


def test_what_a_task_raises_is_passed_on_and_costs_no_retry_but_for_the_gpu() -> None:
    lost: list[tuple[str, str]] = []
    refused = "Error 807: MPS server is not ready to accept new MPS client requests"
    jobs: list[Job[Any]] = [Job(said, Stumble(said), "", 1.0) for said in ("No space left", refused)]
    run_jobs(jobs, 1, Watch(), on_lost=lambda task, kind, reason: lost.append((kind, reason)))
    assert lost == [
        ("error", "RuntimeError: No space left"),
        ("gpu", f"the GPU no longer answered: RuntimeError: {refused}"),
    ]


@dataclass(frozen=True)
class Set:
    """What a method may do to its process; then the task fails, or not."""

    ok: bool

    def run(self, report: Callable[[float, str], None]) -> bool:
        import torch

        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        torch.set_default_device("meta")
        torch.set_flush_denormal(False)
        torch.use_deterministic_algorithms(True)
        torch.autograd.set_detect_anomaly(True)
        torch.backends.cudnn.benchmark = True
        os.chdir("/")
        return self.ok


@dataclass(frozen=True)
class TellState:
    path: Path

    def run(self, report: Callable[[float, str], None]) -> bool:
        import torch

        made = torch.ones(1, requires_grad=True) * 2
        tiny = torch.tensor([1e-39]) * torch.tensor([0.5])
        modes = (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_anomaly_enabled(),
            torch.backends.cudnn.benchmark,
        )
        state = (made.dtype, made.requires_grad, made.device, float(tiny), modes, os.getcwd())
        self.path.write_text(str(state))
        return True


@pytest.mark.parametrize("ok", [True, False])
def test_what_a_task_sets_is_not_there_for_the_next(ok: bool, tmp_path: Path) -> None:
    tell = [Job(name, TellState(tmp_path / name), name, 1.0) for name in ("before", "after")]
    jobs: list[Job[Any]] = [tell[0], Job("set", Set(ok), "set", 1.0), tell[1]]
    assert run_jobs(jobs, 1, Watch()) is ok
    before, after = ((tmp_path / name).read_text() for name in ("before", "after"))
    assert before == after


LEFT: list[weakref.ref[Any]] = []
"""Of a worker's own: the networks that its tasks have left behind."""


@dataclass(frozen=True)
class ImportAndLeave:
    """Imports, and leaves a network in a cycle behind, as hooks do. Tells how many objects there are for a collection
    to look through before it does, and how many networks of former tasks are still there."""

    path: Path

    def run(self, report: Callable[[float, str], None]) -> bool:
        self.path.write_text(f"{len(gc.get_objects())} {sum(left() is not None for left in LEFT)}")
        import sklearn.linear_model  # noqa: F401
        from torch import nn

        network = nn.Identity()
        network.register_forward_hook(lambda *_: network)
        LEFT.append(weakref.ref(network))
        return True


@dataclass(frozen=True)
class TellThreads:
    path: Path

    def run(self, report: Callable[[float, str], None]) -> bool:
        import torch

        self.path.write_text(f"{torch.get_num_threads()} {os.environ['OMP_NUM_THREADS']}")
        return True


def test_threads_of_a_worker(tmp_path: Path) -> None:
    job: Job[Any] = Job("a", TellThreads(tmp_path / "a"), "a", 1.0)
    assert run_jobs([job], 1, Watch(), threads=2)
    assert (tmp_path / "a").read_text() == "2 2"


def test_a_collection_leaves_out_what_tasks_import_and_takes_what_they_leave(tmp_path: Path) -> None:
    names = ["first", "second", "third"]
    jobs: list[Job[Any]] = [Job(name, ImportAndLeave(tmp_path / name), name, 1.0) for name in names]
    assert run_jobs(jobs, 1, Watch())
    for name in names:
        objects, left = (tmp_path / name).read_text().split()
        assert int(objects) < 20_000
        assert left == "0"


def test_how_many_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_cores", lambda: 16)
    assert processes("cpu", None) == 16
    assert processes("cuda", None) == processes("cuda:1", None) == pool.CELLS_PER_GPU
    assert processes("cuda", 9) == processes("cpu", 9) == processes("cuda", 9, reads_files=True) == 9
    assert processes("cuda", None, reads_files=True) == 1
    assert processes("cpu", None, reads_files=True) == 16
    assert threads_each("cuda", 4) == 4
    assert threads_each("cuda", 32) == 1
    assert threads_each("cpu", 1) == 1


def test_a_full_disk_ends_all_of_it_and_is_no_jobs_fault(tmp_path: Path) -> None:
    lost: list[str] = []
    jobs: list[Job[Any]] = [Job("fill", FillDisk(), "", 1.0), Job("next", Touch(tmp_path / "next"), "", 1.0)]
    with pytest.raises(BadInput, match=r"^/full/of it: No space left on device; where there is room"):
        run_jobs(jobs, 1, Watch(), on_lost=lambda task, kind, reason: lost.append(kind))
    assert not lost
    assert not (tmp_path / "next").exists()
