"""The controls of a finished point, as a suite: its shape trained from scratch, and random units at its ratios.

Which part of a result is due to the weights that were kept, which to the shape, and which to the units chosen: the
shape from scratch has only the shape, random units have the trained weights and the shape but no criterion.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.errors import BadInput, nearest
from bench.records.read import read_records
from bench.records.schema import PointRecord
from bench.suite import MethodEntry, Suite, WorkloadEntry
from bench.training.recipe import Recipe


def control_entries(point: PointRecord) -> list[MethodEntry]:
    """`same-shape`, at the strength of the point, and, where only units went, `random` with ratios, at the fraction of
    all units that went.

    Raises BadInput for a point that is not done or has no removed structure.
    """
    whole = {site for site, count in point.kept.items() if count == point.sizes[site]}
    kept = {site: count for site, count in point.kept.items() if site not in whole and count}
    if point.status != "done" or not (kept or point.layer_actions):
        what = "keeps the whole network" if point.status == "done" else "failed"
        raise BadInput(f"point {point.id}: {what}: there is nothing to control for")
    of = f"{point.method.label} at {point.strength:g}"
    shape: dict[str, Any] = {"kept": kept}
    if point.layer_actions:
        shape["layer_actions"] = list(point.layer_actions)
    entries = [_entry("same-shape", f"same shape as {of}", point.strength, shape)]
    if not point.layer_actions:
        ratios = {site: 1 - count / point.sizes[site] for site, count in kept.items()}
        share = 1 - sum(point.kept.values()) / sum(point.sizes.values())
        gone = min(max(round(share, 4), 1e-4), 1 - 1e-4)  # 0 keeps the whole network, 1 is no ratio
        entries.append(_entry("random", f"random at the ratios of {of}", gone, {"ratios": ratios}))
    return entries


def _entry(name: str, label: str, strength: float, config: dict[str, Any]) -> MethodEntry:
    return MethodEntry(name=name, label=label, strengths=(strength,), config=config)


def _once(entries: Sequence[MethodEntry]) -> list[MethodEntry]:
    """Points of equal shape have the same control: one entry that names them all."""
    found: dict[str, MethodEntry] = {}
    for entry in entries:
        settings = json.dumps([entry.name, entry.strengths, entry.config], sort_keys=True)
        label = f"{found[settings].label}; {entry.label}" if settings in found else entry.label
        found[settings] = entry.model_copy(update={"label": label})
    return list(found.values())


def control_suite(points: Sequence[PointRecord], same_compute: bool = False) -> Suite:
    """The controls of points of one workload and seed.

    same_compute: epochs for as many multiply-accumulates as the full network took, in place of as many epochs; for
    one point only, and without `random`, which trains the full network.
    """
    first = points[0]
    for point in points:
        if point.workload != first.workload or point.seed != first.seed:
            raise BadInput(f"points {first.id} and {point.id} are of different workloads or seeds")
    recipe = Recipe(**first.workload.recipe)
    entries = _once([entry for point in points for entry in control_entries(point)])
    if same_compute:
        if len(points) > 1:
            raise BadInput("the same compute is another number of epochs for each point: give one point")
        assert first.cost is not None
        assert first.dense_cost is not None
        epochs = round(recipe.epochs * first.dense_cost.macs / first.cost.macs)
        recipe = recipe.model_copy(update={"epochs": max(recipe.epochs, epochs)})
        shape = entries[0]
        entries = [shape.model_copy(update={"label": f"{shape.label}, same compute"})]
    return Suite(
        title=f"Controls of {len(points)} point{'s' * (len(points) > 1)} of {first.suite}",
        seeds=(first.seed,),
        workloads=(
            WorkloadEntry(
                dataset=first.workload.dataset,
                network=first.workload.network,
                start=first.workload.start.path if first.workload.start else None,
                streams=first.workload.streams,
                round_to=first.workload.round_to,
                cpu=first.workload.cpu,
                recipe=recipe,
            ),
        ),
        methods=tuple(entries),
    )


def write_controls(results: Path, ids: Sequence[str], out: Path, same_compute: bool = False) -> Suite:
    """The suite of the controls of some points of a results folder, as a file that `bench run` takes."""
    points = read_records(results).point
    for id in ids:
        if id not in points:
            raise BadInput(f"results folder {results}: no point {id!r}{nearest(id, points)}")
    suite = control_suite([points[id] for id in ids], same_compute)
    try:
        out.write_text(as_toml(suite), encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{out}: cannot be written: {error.strerror}") from None
    return suite


def as_toml(suite: Suite) -> str:
    """The text of a suite file."""
    lines = [f"title = {_toml(suite.title)}", f"seeds = {_toml(suite.seeds)}"]
    lines += ["", "[measure]", f"latency = {_toml(suite.measure.latency)}"]
    for workload in suite.workloads:
        lines += ["", "[[workloads]]", *_pairs(workload.model_dump(mode="json", exclude_none=True))]
    for entry in suite.methods:
        lines += ["", "[[methods]]", *_pairs(entry.model_dump(mode="json", exclude_none=True))]
    return "\n".join(lines) + "\n"


def _pairs(values: Mapping[str, Any]) -> list[str]:
    return [f"{key} = {_toml(value)}" for key, value in values.items()]


def _toml(value: Any) -> str:
    """Strings, numbers and truth values are written alike in JSON and TOML; tables inline."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_toml(key)} = {_toml(each)}" for key, each in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(each) for each in value) + "]"
    return json.dumps(value, ensure_ascii=False)  # TOML knows no surrogate pairs
