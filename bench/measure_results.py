"""`bench measure`: latency of the compact networks that a results folder holds, later or on another machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bench.compaction.archive import ARCHITECTURE
from bench.device import resolve
from bench.errors import EXIT_DONE, EXIT_SOME_FAILED, BadInput
from bench.execute import layout
from bench.execute.measure_stage import Wanted, measure_all
from bench.filters import Filters
from bench.measure.machine import describe
from bench.measure.presets import planned_id
from bench.records.read import read_records
from bench.records.select import select_points, title
from bench.records.store import Store

if TYPE_CHECKING:
    from rich.console import Console


def measure_results(
    results: Path, filters: Filters, device_name: str, preset: str, retry_failed: bool, console: Console
) -> int:
    """Measure what has no record for this device and preset yet; the exit code: 0, or 3 where a measurement failed.

    Needs the records of the points and their compact networks, neither data nor trained networks. A point whose
    method zeroes single weights gets no latency: no kernel here is faster for it.
    """
    device = resolve(device_name)
    records = read_records(results)
    points = select_points(records, filters, results)
    dense = [point for point in points if point.method.granularity != "weight"]
    wanted = []
    for point in dense:
        folder = records.files["point", point.id].parent.parent
        if (layout.compact(folder, point.id) / ARCHITECTURE).is_file():
            wanted.append(Wanted(folder, point.id, planned_id(point.id, device, preset), title(point)))
    if not wanted:
        reason = (
            "no compact network of these points" if dense else "only weights were zeroed: nothing to measure"
        )
        raise BadInput(f"results folder {results}: {reason}")
    for folder in dict.fromkeys(one.results for one in wanted):
        Store(folder).check_writable()
    done = measure_all(f"measuring latency ({preset})", wanted, str(device), preset, console, retry_failed)
    statuses = [Store(one.results).status("measure", one.id) for one in wanted]
    failed = sum(status != "done" for status in statuses)
    parts = [f"{len(wanted)} points measured on {describe(device).device} ({preset}), {done} of them now"]
    if failed:
        parts.append(f"{failed} failed (`bench status` says why, --retry-failed tries again)")
    if len(points) > len(dense):
        parts.append(f"{len(points) - len(dense)} with zeroed weights left out")
    if len(dense) > len(wanted):
        parts.append(f"{len(dense) - len(wanted)} without a compact network left out")
    console.print("; ".join(parts), highlight=False, markup=False, soft_wrap=True)
    return EXIT_SOME_FAILED if failed else EXIT_DONE
