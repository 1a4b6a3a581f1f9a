"""`bench status`: what a results folder holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from bench.errors import BadInput
from bench.execute.progress import spent_in_words
from bench.records.read import read_records
from bench.records.times import spent

if TYPE_CHECKING:
    from rich.console import Console


def print_status(results: Path, as_json: bool, console: Console) -> None:
    """Records by stage and status, what they took to make, and every failure with its reason. Raises BadInput where
    there is no record."""
    records = read_records(results)
    everything = [*records.train.values(), *records.point.values(), *records.measure.values()]
    if not everything:
        raise BadInput(f"results folder {results}: there are no records in it")
    counts = {stage: {"done": 0, "failed": 0} for stage in ("train", "point", "measure")}
    failures = []
    for record in everything:
        counts[record.kind][record.status] += 1
        if record.failure is not None:
            what = f"{record.workload.network} · {record.method.label} · seed {record.seed}"
            failures.append(
                {
                    "stage": record.kind,
                    "id": record.id,
                    "cell": what,
                    "kind": record.failure.kind,
                    "reason": record.failure.reason,
                }
            )
    if as_json:
        seconds = spent(records)._asdict()
        seconds.pop("untold")
        found = {"results": str(results), "records": counts, "seconds": seconds, "failures": failures}
        print(json.dumps(found, indent=1))
        return
    for stage, count in counts.items():
        console.print(f"{stage:<8} {count['done']:>6} done {count['failed']:>6} failed", highlight=False)
    console.print(f"core time: {spent_in_words(spent(records))}", highlight=False, soft_wrap=True)
    for failure in failures:
        line = f"{failure['stage']} {failure['cell']}: {failure['kind']}: {failure['reason']}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
