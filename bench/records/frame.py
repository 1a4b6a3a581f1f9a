"""The columns and types of the DataFrames that `read_results` gives."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pandas

from bench.errors import BadInput, nearest
from bench.records.schema import (
    Cost,
    LatencyPart,
    MeasureRecord,
    PointRecord,
    Record,
    Scores,
    TrainRecord,
)

if TYPE_CHECKING:
    from bench.records.read import Records

_IDENTITY = {
    "suite": "category",
    "dataset": "category",
    "network": "category",
    "method": "category",
    "label": "category",
    "granularity": "category",
    "strength_kind": "category",
    "strength": "float64",
    "seed": "Int64",
    "status": "category",
    "failure": "category",
    "reason": "string",
}
_SCORES = {"accuracy": "float64", "loss": "float64", "calibration_error": "float64"}
_COST = dict.fromkeys(Cost.model_fields, "Int64")
_DYNAMIC = {"expected_macs": "float64", "gate_operations": "Int64", "gate_parameters": "Int64"}
_DYNAMIC_ENGINES = {"gather": 1, "masked": 128}
"""Engines of networks with input gates, which are never mixed with the others → the batch size of their columns."""
_HEADLINE = {
    "latency_ms": "float64",
    "dense_latency_ms": "float64",
    "speedup": "float64",
    "latency_unstable": "boolean",
}
_ORIGIN = {
    "device": "category",
    "created": "string",
    "schema_version": "Int64",
    "protocol_version": "Int64",
    "dataset_fingerprint": "category",
    "recipe": "category",
    "config": "category",
    "source": "category",
    "file": "string",
    "id": "string",
}
_TRAINING = {
    "epochs": "Int64",
    "steps": "Int64",
    "step_ms": "float64",
    "train_seconds": "float64",
    "train_peak_rss_bytes": "Int64",
}

POINT_COLUMNS: Mapping[str, str] = {
    **_IDENTITY,
    **{
        f"{split}_{name}": kind
        for split in ("test", "validation", "masked_test", "masked_validation")
        for name, kind in _SCORES.items()
    },
    **_COST,
    **{f"dense_{name}": kind for name, kind in _COST.items()},
    "parameters_kept": "float64",
    "macs_kept": "float64",
    "parameters_ratio": "float64",
    "nonzero_ratio": "float64",
    "macs_ratio": "float64",
    "weights_pruned": "float64",
    "certificate": "boolean",
    "difference_float64": "float64",
    "difference_float32": "float64",
    "top1_changes": "Int64",
    "removed_units": "Int64",
    "kept_constant_units": "Int64",
    "units_kept": "Int64",
    "units_total": "Int64",
    "expected_active_units": "float64",
    "units": "string",
    "activity": "string",
    **_DYNAMIC,
    **_TRAINING,
    "point_seconds": "float64",
    **_ORIGIN,
    "train_id": "string",
    "measure_id": "string",
    "latency_device": "category",
    **{
        f"{name}_{engine}_b{batch}": kind
        for engine, batch in _DYNAMIC_ENGINES.items()
        for name, kind in _HEADLINE.items()
    },
}
"""Column → dtype of `stage="point"`; the latency columns of each measured batch size follow."""

RATIOS: Mapping[str, str] = {
    "parameters": "dense_parameters",
    "nonzero": "dense_parameters",
    "macs": "dense_macs",
}
"""`<name>_ratio` is this column over the column of the name. The zeros of a fresh dense network (biases) mean nothing:
its parameters are what non-zeros are compared with."""

TRAIN_COLUMNS: Mapping[str, str] = {
    **_IDENTITY,
    **_TRAINING,
    "train_loss": "float64",
    "validation_loss": "float64",
    "validation_accuracy": "float64",
    "initial_weights": "string",
    "data_order": "string",
    "shared_pretraining": "string",
    "shared_seconds": "float64",
    **_ORIGIN,
}
"""Column → dtype of `stage="train"`; loss and accuracy are those of the last epoch that has them."""

_LATENCY_NUMBERS = [
    "compact_median",
    "compact_p10",
    "compact_p90",
    "dense_median",
    "dense_p10",
    "dense_p90",
]
MEASURE_COLUMNS: Mapping[str, str] = {
    **_IDENTITY,
    "device_type": "category",
    "clock": "category",
    "batch": "Int64",
    "engine": "category",
    "dtype": "category",
    "layout": "category",
    "calls": "Int64",
    "blocks": "Int64",
    **{f"{name}_ms": "float64" for name in _LATENCY_NUMBERS},
    "speedup": "float64",
    "speedup_low": "float64",
    "speedup_high": "float64",
    "unstable": "boolean",
    "peak_bytes": "Int64",
    "measure_seconds": "float64",
    "threads": "Int64",
    **_ORIGIN,
    "point_id": "string",
}
"""Column → dtype of `stage="measure"`."""


def point_frame(records: Records, latency_device: str | None = None) -> pandas.DataFrame:
    """One row per operating point; a failed training stands for the points it did not reach."""
    measured = _headline_measurements(records, latency_device)
    rows = []
    for point in records.point.values():
        row = _point_row(point, records)
        row |= _training_part(records.train.get(point.train_id))
        if measure := measured.get(point.id):
            row |= {"latency_device": measure.machine.device, "measure_id": measure.id}
            row |= _headline_latency(measure)
        rows.append(row)
    for train, strength in _unreached_points(records):
        row = _identity(train, strength) | _origin(train, records)
        rows.append(row | _training_part(train) | {"id": None, "train_id": train.id})
    batches = sorted(
        {int(name.rpartition("_b")[2]) for row in rows for name in row if name.startswith("speedup_b")}
    )
    latency = {f"{name}_b{batch}": kind for batch in batches for name, kind in _HEADLINE.items()}
    frame = _frame(rows, {**POINT_COLUMNS, **latency})
    for name in ("parameters", "macs"):
        frame[f"{name}_kept"] = _float(frame[name]) / _float(frame[f"dense_{name}"])
    for name, dense in RATIOS.items():
        frame[f"{name}_ratio"] = _float(frame[dense]) / _float(frame[name])
    frame["weights_pruned"] = 1 - _float(frame["nonzero_weights"]) / _float(frame["dense_weights"])
    return frame


def train_frame(records: Records) -> pandas.DataFrame:
    """One row per training."""
    rows = []
    for train in records.train.values():
        row = _identity(train, train.strength) | _origin(train, records) | _training_part(train)
        for name in ("train_loss", "validation_loss", "validation_accuracy"):
            seen = [epoch[name] for epoch in train.history if epoch.get(name) is not None]
            row[name] = seen[-1] if seen else None
        for name in ("initial_weights", "data_order", "shared_pretraining", "shared_seconds"):
            row[name] = getattr(train, name)
        rows.append(row)
    return _frame(rows, TRAIN_COLUMNS)


def measure_frame(records: Records) -> pandas.DataFrame:
    """One row per latency entry; a failed measurement has one row without numbers."""
    rows = []
    for measure in records.measure.values():
        shared = _identity(measure, measure.strength) | _origin(measure, records)
        shared |= {
            "device_type": measure.device,
            "point_id": measure.point_id,
            "measure_seconds": measure.seconds,
            "threads": measure.machine.threads,
        }
        rows += [
            shared | _latency_row(part) | {"peak_bytes": measure.peak_bytes.get(str(part.batch))}
            for part in measure.latency
        ] or [shared]
    return _frame(rows, MEASURE_COLUMNS)


def _identity(record: Record, strength: float | None) -> dict[str, Any]:
    failure = record.failure
    return {
        "suite": record.suite,
        "dataset": record.workload.dataset,
        "network": record.workload.network,
        "method": record.method.name,
        "label": record.method.label,
        "granularity": record.method.granularity,
        "strength_kind": record.method.strength_kind,
        "strength": strength,
        "seed": record.seed,
        "status": record.status,
        "failure": failure and failure.kind,
        "reason": failure and failure.reason,
    }


def _origin(record: Record, records: Records) -> dict[str, Any]:
    return {
        "device": record.machine.device,
        "created": record.created,
        "schema_version": record.schema_version,
        "protocol_version": record.protocol_version,
        "dataset_fingerprint": record.workload.dataset_fingerprint,
        "recipe": json.dumps(record.workload.recipe | record.workload.beside_recipe(), sort_keys=True),
        "config": json.dumps(record.method.variant(), sort_keys=True),
        "source": record.method.source,
        "file": str(records.files[record.stage, record.id]),
        "id": record.id,
    }


def _point_row(point: PointRecord, records: Records) -> dict[str, Any]:
    row = _identity(point, point.strength) | _origin(point, records)
    for split in ("test", "validation", "masked_test", "masked_validation"):
        scores: Scores | None = getattr(point, split)
        if scores is not None:
            row |= {f"{split}_{name}": getattr(scores, name) for name in _SCORES}
    for prefix, cost in (("", point.cost), ("dense_", point.dense_cost)):
        if cost is not None:
            row |= {f"{prefix}{name}": getattr(cost, name) for name in _COST}
    if (certificate := point.certificate) is not None:
        row["certificate"] = certificate.passed
        for name in (
            "difference_float64",
            "difference_float32",
            "top1_changes",
            "removed_units",
            "kept_constant_units",
        ):
            row[name] = getattr(certificate, name)
    if point.sizes:
        row["units_kept"] = sum(point.kept.get(site, size) for site, size in point.sizes.items())
        row["units_total"] = sum(point.sizes.values())
        row["units"] = json.dumps({site: point.kept.get(site, size) for site, size in point.sizes.items()})
    if point.expected_activity:
        row["expected_active_units"] = sum(point.expected_activity.values())
        row["activity"] = json.dumps(point.expected_activity)
    if point.dynamic is not None:
        row |= {name: getattr(point.dynamic, name) for name in _DYNAMIC}
    return row | {"train_id": point.train_id, "point_seconds": point.seconds}


def _training_part(train: TrainRecord | None) -> dict[str, Any]:
    if train is None:
        return {}
    return {
        "epochs": sum(train.epochs.values()),
        "steps": train.steps,
        "step_ms": train.step_milliseconds,
        "train_seconds": train.seconds,
        "train_peak_rss_bytes": train.peak_rss_bytes,
    }


def _unreached_points(records: Records) -> Iterator[tuple[TrainRecord, float | None]]:
    """The points that failed trainings leave without a record. A training that serves all strengths fails at
    those that its other seeds reached; where no seed reached any, the strength is unknown."""
    reached: dict[str, set[float]] = {}
    for point in records.point.values():
        for key in (point.train_id, _without_seed(point.train_id)):
            reached.setdefault(key, set()).add(point.strength)
    for train in records.train.values():
        if train.status != "failed":
            continue
        strengths: list[float | None] = [train.strength]
        if train.strength is None:
            strengths = [*sorted(reached.get(_without_seed(train.id), ()))] or [None]
        for strength in strengths:
            if strength not in reached.get(train.id, ()):
                yield train, strength


def _without_seed(id: str) -> str:
    return id.rpartition("-s")[0] + "-s"


def _headline_measurements(records: Records, device: str | None) -> dict[str, MeasureRecord]:
    """Point id → its newest done measurement on the device that it is compared on: the given one, or that on which most
    points of its data set and network were measured, as one table is never of two."""
    done = [record for record in records.measure.values() if record.status == "done" and record.latency]
    points: dict[tuple[str, str], dict[str, set[str]]] = {}
    for record in done:
        table = points.setdefault((record.workload.dataset, record.workload.network), {})
        table.setdefault(record.machine.device, set()).add(record.point_id)
    devices = {name for table in points.values() for name in table}
    if device is not None and device not in devices:
        raise BadInput(f"device {device!r} has no latency in these records{nearest(device, devices)}")
    main = {key: min(table, key=lambda name: (-len(table[name]), name)) for key, table in points.items()}
    here = [
        record
        for record in done
        if record.machine.device == (device or main[record.workload.dataset, record.workload.network])
    ]
    return {record.point_id: record for record in sorted(here, key=lambda r: (r.created, r.id))}


def _headline_latency(measure: MeasureRecord) -> dict[str, Any]:
    """On the host's clock, which sees what a caller waits for; of several engines for plain networks eager fp32
    comes first."""
    row: dict[str, Any] = {}
    ordered = sorted(measure.latency, key=lambda part: (part.engine != "eager", part.dtype != "fp32"))
    for part in ordered:
        place = f"{part.engine}_b{part.batch}" if part.engine in _DYNAMIC_ENGINES else f"b{part.batch}"
        if part.clock == "host" and f"speedup_{place}" not in row:
            numbers = (part.compact_median, part.dense_median, part.speedup, part.unstable)
            row |= {f"{name}_{place}": number for name, number in zip(_HEADLINE, numbers, strict=True)}
    return row


def _latency_row(part: LatencyPart) -> dict[str, Any]:
    values = part.model_dump()
    return {f"{name}_ms" if name in _LATENCY_NUMBERS else name: value for name, value in values.items()}


def _float(column: pandas.Series) -> Any:
    return column.to_numpy(dtype="float64", na_value=float("nan"))


def _frame(rows: list[dict[str, Any]], columns: Mapping[str, str]) -> pandas.DataFrame:
    """In an order that does not depend on file names or on which machine wrote first."""
    names = list(columns)
    frame = pandas.DataFrame(
        {name: pandas.Series([row.get(name) for row in rows], dtype="object") for name in names}
    ).astype(dict(columns))
    order = [
        name
        for name in ("dataset", "network", "label", "strength", "seed", "batch", "clock")
        if name in columns
    ]
    frame["_id"] = frame["id"].fillna("")
    frame = frame.sort_values([*order, "_id"], kind="stable", ignore_index=True)
    return frame.drop(columns="_id")
