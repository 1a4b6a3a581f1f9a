"""Workers on a CUDA device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

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
