"""Workers on a CUDA device."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from bench.execute.gpu_sharing import CONTROL, side_by_side
from bench.execute.memory import raise_if_lost
from bench.execute.pool import Job, run_jobs
from tests.execute.test_pool import Watch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@dataclass(frozen=True)
class LookUp:
    """Waits for its result, so that it fails where the device has."""

    index: int

    def run(self, report: Callable[[float, str], None]) -> bool:
        try:
            return (
                torch.arange(3, device="cuda")[torch.tensor([self.index], device="cuda")].item() == self.index
            )
        except RuntimeError:
            return False


def test_a_failed_kernel_costs_its_task_alone() -> None:
    """An assertion that fails on the device leaves its process without one."""
    jobs: list[Job[Any]] = [Job(str(index), LookUp(index), "", 1.0) for index in (1, 7, 2)]
    watch = Watch()
    run_jobs(jobs, 1, watch)
    assert watch.outcomes == {"1": True, "7": False, "2": True}


@dataclass(frozen=True)
class LookUpForAWhile(LookUp):
    """Fails as a cell does."""

    def run(self, report: Callable[[float, str], None]) -> bool:
        values = torch.arange(3, device="cuda")
        place = torch.tensor([self.index], device="cuda")
        try:
            return all(values[place].item() == self.index for _ in range(50_000))
        except RuntimeError as error:
            raise_if_lost(error)
            return False


@pytest.mark.skipif(shutil.which(CONTROL) is None, reason="needs NVIDIA's MPS")
def test_side_by_side_a_failed_kernel_costs_its_task_alone() -> None:
    jobs: list[Job[Any]] = [Job(str(at), LookUpForAWhile(at), "", 1.0) for at in (0, 1, 2, 7)]
    lost: list[str] = []
    watch = Watch()
    with side_by_side("cuda", len(jobs)) as shared:
        assert shared
        run_jobs(
            jobs,
            len(jobs),
            watch,
            on_lost=lambda task, kind, reason: lost.append(f"{kind} {task.index}"),
            shared_gpu=shared,
        )
    assert watch.outcomes == {"0": True, "1": True, "2": True, "7": False}
    assert lost == ["gpu 7"]
