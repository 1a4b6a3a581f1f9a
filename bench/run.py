"""`bench run`: a suite from its file to its leaderboard."""

from __future__ import annotations

import multiprocessing
import signal
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from bench import estimate
from bench import suite as suites
from bench.errors import EXIT_DONE, EXIT_SOME_FAILED, BadInput
from bench.execute import layout, shortcut
from bench.execute.gpu_sharing import side_by_side
from bench.execute.interrupts import signals_interrupt
from bench.execute.leftovers import remove_leftovers
from bench.execute.lock import alone_in
from bench.execute.measure_stage import Wanted, measure_all
from bench.execute.pool import Job, child_environment, cores_each, processes, run_jobs, threads_each
from bench.execute.progress import Display
from bench.execute.worker import CellTask, PretrainTask, end_with_parent
from bench.planned import print_edited, print_times
from bench.records.store import Store
from bench.tune import keep, tuned

if TYPE_CHECKING:
    from bench.cells import Cell, Plan
    from bench.filters import Filters


@dataclass(frozen=True)
class RunOptions:
    """What the command line says beside the suite and its filters. jobs: processes, None for what suits the device;
    timeout: seconds for one cell; tune: see `bench.tune`."""

    results: Path
    data_root: Path | None
    jobs: int | None
    device: str
    retry_failed: bool = False
    timeout: float | None = None
    tune: bool = False


@signals_interrupt()
def run_suite(name_or_path: str, filters: Filters, options: RunOptions, console: Console) -> int:
    """Run what is not done yet, then make the views. The exit code: 0, or 3 where cells failed.

    Raises BadInput before anything is written.
    """
    began = time.monotonic()
    suite = suites.load(name_or_path)
    request = _request(name_or_path, suite, filters, options)
    store = Store(options.results)
    if not options.retry_failed and (code := _already_done(suite, store, request, console)) is not None:
        return code

    plan = plan_elsewhere(suite, filters, options)
    store.check_writable()
    with alone_in(options.results) as held:
        if held:
            remove_leftovers(options.results)
        return _run(plan, suite, store, request, options, console, began)


def _run(
    plan: Plan,
    suite: suites.Suite,
    store: Store,
    request: str,
    options: RunOptions,
    console: Console,
    began: float,
) -> int:
    """Everything that writes; the exit code."""
    for line in keep(options.results, plan) if options.tune else ():
        console.print(line, highlight=False, markup=False)
    print_edited(plan, store, console)
    for skip in plan.skips:
        console.print(
            f"skipped: {skip.label} on {skip.network}: {skip.reason}", highlight=False, markup=False
        )
    _train(plan, store, options, console)
    measures = _measure(plan, store, options, console)
    failed = _failed(plan, store, measures)

    from bench.report.views import write_views

    records = write_views(options.results, console, labels=plan.labels(), suite=suite)
    jobs = processes(plan.device, options.jobs, plan.reads_files)
    print_times(records, plan, measures, began, jobs, console)
    shortcut.remember(
        options.results,
        shortcut.Remembered(
            request=request,
            trains=[cell.train_id for cell in plan.cells],
            points=[point for cell in plan.cells for _, point in cell.points],
            measures=measures,
        ),
    )
    return _close(failed, options.results, console)


def plan_elsewhere(suite: suites.Suite, filters: Filters, options: RunOptions) -> Plan:
    """The plan, made in a process that ends with it: planning needs torch and the data, watching does not. Nobody waits
    for a process whose plan is no longer wanted."""
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send_plan, args=(theirs, suite, filters, options), daemon=True)
    try:
        with child_environment():
            process.start()
        theirs.close()
        made = _received(pipe)
        process.join(timeout=5)  # what a method file prints comes out when its process ends
    finally:
        if process.pid is not None:
            process.kill()
            process.join()
        pipe.close()
    if made is None:
        raise BadInput(f"{suite.where}: the process that plans was ended, out of memory or by a method file")
    if isinstance(made, Exception):
        raise made
    return made


def _received(pipe: Connection) -> Plan | Exception | None:
    """What `_send_plan` sends; None where its process has ended before all of it was here."""
    try:
        made: Plan | Exception = pipe.recv()
    except (EOFError, OSError):
        return None
    return made


def _send_plan(pipe: Connection, suite: suites.Suite, filters: Filters, options: RunOptions) -> None:
    """The plan, or what went wrong. The parent alone answers to Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    made: Plan | Exception
    try:
        made = _make_plan(suite, filters, options)
    except BadInput as error:
        made = error
    except Exception as error:  # a fault of ours: the parent shows it, and a pipe carries no traceback
        error.add_note(traceback.format_exc())
        made = error
    pipe.send(made)


def _make_plan(suite: suites.Suite, filters: Filters, options: RunOptions) -> Plan:
    from bench.plan import make_plan

    if options.tune:
        jobs = processes(options.device, options.jobs)
        suite = tuned(suite, filters, options.results, options.data_root, options.device, cores_each(jobs))
    return make_plan(suite, filters, options.data_root, options.device)


def _request(name_or_path: str, suite: suites.Suite, filters: Filters, options: RunOptions) -> str:
    stamps = [shortcut.data_stamp(workload.dataset, options.data_root) for workload in suite.workloads]
    starts = [workload.start for workload in suite.workloads if workload.start]
    files = [Path(file) for file in (*filters.files, *starts) if Path(file).is_file()]
    return shortcut.request_digest(
        [filters, options.device, options.data_root, options.tune, *stamps],
        [suites.find(name_or_path), *files],
    )


def _already_done(suite: suites.Suite, store: Store, request: str, console: Console) -> int | None:
    """The exit code where a former run of the same request has left a record of everything. Not where a network is the
    user's own: whether it is the same is known when it has been built."""
    if any(workload.own_network for workload in suite.workloads):
        return None
    remembered = shortcut.recall(store.root, request)
    if remembered is None or not (layout.report(store.root) / "leaderboard.md").is_file():
        return None
    failed = shortcut.failures(store, remembered)
    if failed is None:
        return None
    ended = f"have ended, {failed} records are failures" if failed else "are done"
    console.print(
        f"suite {suite.name}: all {len(remembered.points)} operating points of {len(remembered.trains)} "
        f"trainings {ended}; the report lies in {layout.report(store.root)}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    return _close(failed, store.root, console)


def _close(failed: int, results: Path, console: Console) -> int:
    if not failed:
        return EXIT_DONE
    console.print(
        f"failures: {failed}; the leaderboard shows them, `bench status --results {results}` says why, "
        "--retry-failed tries them again",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    return EXIT_SOME_FAILED


def _train(plan: Plan, store: Store, options: RunOptions, console: Console) -> None:
    """The train and the point stages of all cells."""
    cells = plan.to_do(store, options.retry_failed)
    if not cells:
        return
    shared = {cell.pretraining.id: cell for cell in reversed(cells) if cell.pretraining}
    shared = {i: cell for i, cell in shared.items() if not layout.pretrained(options.results, i).is_file()}

    # A method may change the working folder before the records of its cell are written.
    results = options.results.absolute()
    data_root = None if options.data_root is None else options.data_root.absolute()

    def pretrain_job(id: str, cell: Cell) -> Job[Any]:
        task = PretrainTask(cell, results, data_root, plan.device)
        title = f"{cell.workload.network} · shared pretraining · seed {cell.seed}"
        return Job(id, task, title, estimate.training_seconds(cell) * estimate.shared_share(cell))

    jobs: list[Job[Any]] = []
    for cell in cells:
        id = cell.pretraining.id if cell.pretraining else ""
        if id in shared:
            jobs.append(pretrain_job(id, shared.pop(id)))
        task = CellTask(cell, results, data_root, plan.device, options.retry_failed)
        jobs.append(Job(cell.train_id, task, cell.title, estimate.own_seconds(cell), (id,) if id else ()))

    def on_lost(task: CellTask | PretrainTask, kind: str, reason: str) -> None:
        if isinstance(task, CellTask):
            import torch

            from bench.execute.cell import CellRun

            device = torch.device(plan.device)
            run = CellRun(task.cell, options.results, options.data_root, device, lambda fraction, doing: None)
            run.record_lost(kind, reason)

    def why(job: Job[Any]) -> str:
        """That of the training, else of its first operating point without a result. A shared pretraining has no
        record: the cells that need it say why."""
        if not isinstance(job.task, CellTask):
            return ""
        points = (store.reason("point", point) for _, point in job.task.cell.points)
        return store.reason("train", job.key) or next(filter(None, points), "")

    with Display(f"{plan.suite.name}: training", jobs, console, why) as display:
        workers = processes(plan.device, options.jobs, plan.reads_files)
        threads = threads_each(plan.device, workers)
        with side_by_side(plan.device, min(workers, len(jobs))) as shared_gpu:
            run_jobs(jobs, workers, display, options.timeout, on_lost, threads, shared_gpu)


def _measure(plan: Plan, store: Store, options: RunOptions, console: Console) -> list[str]:
    """The measure stage, one network at a time while nothing else runs; the ids of the plan's measurements, but for
    those of points whose compact network is not here, as their records came from another machine."""
    titles = {
        point: f"{cell.title} at {strength:g}" for cell in plan.cells for strength, point in cell.points
    }
    done = {p: id for p, id in plan.measures.items() if store.status("point", p) == "done"}
    measures = {
        p: id
        for p, id in done.items()
        if layout.compact(options.results, p).is_dir() or store.status("measure", id) is not None
    }
    if len(measures) < len(done):
        console.print(
            f"not measured here: {len(done) - len(measures)} points whose compact networks are not in "
            f"{options.results}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    preset = plan.suite.measure.latency
    wanted = [Wanted(options.results, point, id, titles[point]) for point, id in measures.items()]
    title = f"{plan.suite.name}: measuring latency"
    measure_all(title, wanted, plan.device, preset, console, options.retry_failed)
    return list(measures.values())


def _failed(plan: Plan, store: Store, measures: list[str]) -> int:
    points = [point for cell in plan.cells for _, point in cell.points]
    statuses = [store.status("point", point) for point in points]
    statuses += [store.status("measure", id) for id in measures]
    return sum(status != "done" for status in statuses)
