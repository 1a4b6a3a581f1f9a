"""`bench run --tune`: the memory format and the threads that train a network fastest on this CPU, measured once.

What was chosen lies in the results folder, so that a run that goes on, or is asked for more, trains in the same way. It
is part of the workload, and of the ids, where it is not what the suite does anyway.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from bench.errors import BadInput
from bench.records.files import write_atomically
from bench.records.schema import Cpu, Workload
from bench.suite import Suite, WorkloadEntry

if TYPE_CHECKING:
    from bench.cells import Plan
    from bench.filters import Filters

_Choices = TypeAdapter(dict[str, Cpu])


def tuned(
    suite: Suite, filters: Filters, results: Path, data_root: Path | None, device: str, threads: int
) -> Suite:
    """The suite with what is fastest in its workloads: as `results` holds it, else measured. threads: as many as a
    process may have. Raises BadInput on a GPU, and where a data set or a network cannot be had."""
    from bench.choose import workloads
    from bench.device import resolve

    if resolve(device).type != "cpu":
        raise BadInput("--tune is about training on a CPU: give --device cpu, or leave it out")
    known = _read(results)
    wanted = [entry for _, entry in workloads(suite, filters)]
    entries = [
        entry.model_copy(update={"cpu": known.get(_key(entry)) or _measured(entry, data_root, threads)})
        if entry in wanted
        else entry
        for entry in suite.workloads
    ]
    changed = suite.model_copy(update={"workloads": tuple(entries)})
    changed._file = suite._file
    return changed


def keep(results: Path, plan: Plan) -> list[str]:
    """Write down what the plan trains with; one line for each of its networks."""
    chosen = {_key(cell.workload): cell.workload.cpu for cell in plan.cells}
    text = {key: cpu.model_dump(mode="json") for key, cpu in {**_read(results), **chosen}.items()}
    write_atomically(results / "cpu.json", (json.dumps(text, indent=1) + "\n").encode())
    return [
        f"{key}: {cpu.memory_format}, {cpu.threads} thread{'s' if cpu.threads > 1 else ''} a process"
        for key, cpu in chosen.items()
    ]


def _read(results: Path) -> Mapping[str, Cpu]:
    path = results / "cpu.json"
    if not path.is_file():
        return {}
    try:
        return _Choices.validate_json(path.read_bytes())
    except ValidationError as error:
        raise BadInput(f"{path}: {error.errors()[0]['msg']}; without the file it is measured anew") from None


def _key(workload: WorkloadEntry | Workload) -> str:
    return f"{workload.network} on {workload.dataset}"


def _measured(entry: WorkloadEntry, data_root: Path | None, threads: int) -> Cpu:
    from bench import data
    from bench.measure.training_speed import fastest, step_times

    dataset = data.load(entry.dataset, data_root)
    times = step_times(
        entry.network, dataset.input_shape, dataset.classes, entry.recipe.batch_size, sorted({1, threads})
    )
    best = fastest(times)
    return Cpu(memory_format=best.memory_format, threads=best.threads)
