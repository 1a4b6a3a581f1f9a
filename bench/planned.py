"""What a plan is about to do and about how long that takes; afterwards, what it took."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bench import estimate
from bench.execute import layout
from bench.execute.pool import processes
from bench.execute.progress import in_words, spent_in_words
from bench.records.times import spent

if TYPE_CHECKING:
    from rich.console import Console

    from bench.cells import Cell, Plan
    from bench.records.read import Records
    from bench.records.store import Store
    from bench.run import RunOptions


def print_plan(plan: Plan, store: Store, options: RunOptions, console: Console) -> None:
    """`bench plan`: what is done, what is to do, what is skipped and why, what of a network stays because an operation
    is not known, and about how long it takes."""
    cells = plan.to_do(store, options.retry_failed)
    to_do = {cell.train_id for cell in cells}
    for cell in plan.cells:
        state = "to do" if cell.train_id in to_do else "done"
        strengths = ", ".join(f"{strength:g}" for strength, _ in cell.points)
        line = f"{state:>5}  {cell.title} → {strengths}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    print_edited(plan, store, console)
    for skip in plan.skips:
        line = f" skip  {skip.label} on {skip.network}: {skip.reason}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for network, operations in plan.pinned.items():
        for operation in operations:
            line = f" stays  channels of {network} at {operation}, which the analysis does not know"
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    work, latency = _seconds_to_do(plan, cells, store, options)
    jobs = processes(plan.device, options.jobs, plan.reads_files)
    wall = work / jobs + latency  # latency is measured one network at a time
    about = (
        f"about {in_words(work + latency)} of core time, {in_words(wall)} on {jobs} processes"
        if work + latency
        else "nothing is left to do"
    )
    console.print(
        f"{len(plan.cells)} trainings, {len(to_do)} to do, {len(plan.skips)} skipped; {about}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def print_edited(plan: Plan, store: Store, console: Console) -> None:
    """Which trainings that are done were made before their method's file was edited. They are not made anew: a method
    that does not come by path is known by its name."""
    edited = Counter(
        cell.method.label
        for cell in plan.cells
        if (record := store.read("train", cell.train_id)) is not None
        and record.status == "done"
        and record.method.source_digest not in ("", cell.method.source_digest)
    )
    for label, trainings in edited.items():
        console.print(
            f"edited since: the file of {label}; {trainings} trainings that are done stay as they are, in another "
            "results folder all are made anew",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )


def _seconds_to_do(
    plan: Plan, cells: Sequence[Cell], store: Store, options: RunOptions
) -> tuple[float, float]:
    """Core time of the training and the points of `cells`, which are to do, and of the latency not measured yet."""
    finished = {"done"} if options.retry_failed else {"done", "failed"}
    unmeasured = {point for point, id in plan.measures.items() if store.status("measure", id) not in finished}
    unshared = [
        cell
        for cell in cells
        if cell.pretraining and not layout.pretrained(options.results, cell.pretraining.id).is_file()
    ]
    work = sum(estimate.own_seconds(cell) for cell in cells) + estimate.shared_seconds(unshared)
    return work, estimate.measuring_seconds(plan.cells, unmeasured)


def print_times(
    records: Records, plan: Plan, measures: Sequence[str], began: float, jobs: int, console: Console
) -> None:
    """What the whole plan was thought to take, what its records say it took, and how long this run was.

    measures: ids of its measurements. began: of this run, as `time.monotonic` says.
    """
    ids = {cell.train_id for cell in plan.cells} | plan.labels().keys() | set(measures)
    planned = sum(estimate.own_seconds(cell) for cell in plan.cells) + estimate.shared_seconds(plan.cells)
    planned += estimate.measuring_seconds(plan.cells, plan.measures)
    console.print(
        f"core time: planned about {in_words(planned)}, {spent_in_words(spent(records, ids))}; "
        f"this run took {in_words(time.monotonic() - began)} on {jobs} processes",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
