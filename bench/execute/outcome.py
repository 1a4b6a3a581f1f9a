"""The records of a cell: what it found, or why it found nothing."""

from __future__ import annotations

import re
import resource
import sys
import traceback
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from bench.cells import Cell
from bench.errors import CellFailed
from bench.measure.machine import describe, versions
from bench.records.schema import Failure, PointRecord, TrainRecord
from bench.training.memory import is_out_of_memory
from bench.training.recipe import Recipe
from bench.training.resume import Progress


@dataclass(frozen=True)
class Outcome:
    """Makes the records of `cell`, run on `device`."""

    cell: Cell
    device: torch.device

    def _common(self, seconds: float) -> dict[str, Any]:
        cell = self.cell
        return {
            "suite": cell.suite,
            "workload": cell.workload,
            "method": cell.method,
            "seed": cell.seed,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": seconds,
            "versions": versions(),
            "machine": describe(self.device),
        }

    def train(
        self,
        status: Any,
        seconds: float,
        progress: Progress | None = None,
        initial: str = "",
        shared: dict[str, Any] | None = None,
        failure: Failure | None = None,
    ) -> TrainRecord:
        """A shared pretraining counts in the epochs, the steps and the history of each cell that uses it, but not in
        `seconds`, which sum up to what all cells took."""
        progress = progress or Progress()
        before = Progress(**shared["progress"]) if shared else Progress()
        steps = progress.steps + before.steps
        busy = progress.seconds + before.seconds
        return TrainRecord(
            **self._common(seconds),
            id=self.cell.train_id,
            kind="train",
            status=status,
            failure=failure,
            strength=self.cell.strength,
            epochs={**before.epochs, **progress.epochs},
            steps=steps,
            step_milliseconds=1000 * busy / steps if steps else None,
            peak_rss_bytes=_peak_rss_bytes(),
            shared_pretraining=self.cell.pretraining.id if shared and self.cell.pretraining else None,
            shared_seconds=before.seconds if shared else None,
            initial_weights=initial,
            data_order=before.data_order or progress.data_order,
            history=before.history + progress.history,
            notes=list(dict.fromkeys(before.notes + progress.notes)),
        )

    def point(self, strength: float, point: str, status: Any, seconds: float, **found: Any) -> PointRecord:
        return PointRecord(
            **self._common(seconds),
            id=point,
            kind="point",
            status=status,
            train_id=self.cell.train_id,
            strength=strength,
            **found,
        )


def describe_failure(
    error: Exception, recipe: Recipe | None = None, method_file: str | None = None
) -> Failure:
    """A record's reason for whatever a cell raised. recipe: of the training that failed, for what may help it.
    method_file: the user's own, whose line is named where the error came through it."""
    detail = "".join(traceback.format_exception(error))
    if isinstance(error, CellFailed):
        return Failure(kind=error.kind, reason=str(error))
    first_line = (str(error).splitlines() or [""])[0]
    if is_out_of_memory(error):
        asked = re.search(r"[Tt]ried to allocate ([\d.]+ ?\w+)", str(error))
        what = f"{asked[1]} more were asked for" if asked else first_line or type(error).__name__
        hint = "; a smaller batch_size, or accumulate_on_out_of_memory = true in the recipe, may fit"
        helps = recipe is not None and not recipe.accumulate_on_out_of_memory
        return Failure(kind="memory", reason=f"out of memory: {what}{hint if helps else ''}", detail=detail)
    where = _line_of(method_file, error) if method_file is not None else ""
    return Failure(kind="error", reason=f"{type(error).__name__}: {first_line}{where}", detail=detail)


def _line_of(file: str, error: Exception) -> str:
    """The innermost line of a file that an error came through."""
    path = Path(file).resolve()
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename) == path]
    return f" ({path.name}, line {lines[-1]})" if lines else ""


def _peak_rss_bytes() -> int:
    """Of this process so far; ru_maxrss is in KiB on Linux and in bytes on macOS."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
