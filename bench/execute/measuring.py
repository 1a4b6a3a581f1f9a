"""The measure stage: latency of compact networks beside the dense one, on this device."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from bench import networks
from bench.compaction.archive import load_archive
from bench.errors import raise_if_disk_full
from bench.execute import layout
from bench.execute.measuring_gates import dynamic_latency
from bench.execute.outcome import describe_failure
from bench.measure.latency import compare_latency, settings
from bench.measure.machine import describe, versions
from bench.measure.memory import peak_bytes
from bench.measure.presets import PRESETS, planned_id
from bench.records.schema import Failure, MeasureRecord, PointRecord
from bench.records.store import Store


def record_lost(point_id: str, results: Path, device: torch.device, preset: str, failure: Failure) -> None:
    """A failed record for a measurement whose process died."""
    _write(point_id, results, device, preset, 0.0, status="failed", failure=failure)


def measure_point(point_id: str, results: Path, device: torch.device, preset: str) -> bool:
    """Measure and record; True when it went well. Needs the point's record and its compact network, nothing else.
    Raises DiskFull, which leaves no record."""
    began = time.perf_counter()
    found: dict[str, Any]
    try:
        found = {"status": "done", **_measure(_point(point_id, results), results, device, preset)}
    except Exception as error:
        raise_if_disk_full(error)
        found = {"status": "failed", "failure": describe_failure(error)}
    _write(point_id, results, device, preset, time.perf_counter() - began, **found)
    return found["status"] == "done"


def _write(
    point_id: str, results: Path, device: torch.device, preset: str, seconds: float, **found: Any
) -> None:
    point = _point(point_id, results)
    Store(results).write(
        MeasureRecord(
            id=planned_id(point_id, device, preset),
            kind="measure",
            suite=point.suite,
            workload=point.workload,
            method=point.method,
            seed=point.seed,
            strength=point.strength,
            point_id=point_id,
            device=device.type,
            protocol=PRESETS[preset].model_dump(mode="json"),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=seconds,
            versions=versions(),
            machine=describe(device),
            settings=settings(device),
            **found,
        )
    )


def _point(id: str, results: Path) -> PointRecord:
    point = Store(results).read("point", id)
    assert isinstance(point, PointRecord)
    return point


def _measure(point: PointRecord, results: Path, device: torch.device, preset: str) -> dict[str, Any]:
    archive = load_archive(layout.compact(results, point.id))
    shape, protocol = archive.input_shape, PRESETS[preset]
    dense = networks.build(archive.network_name, shape, archive.classes)
    # Compact is of the network of then, and would be timed beside one that it never was.
    networks.check_unchanged(archive.network_name, dense, point.workload.network_digest)
    latency = compare_latency(dense, archive.network, shape, device, protocol)
    gathered: list[str] = []
    if archive.dynamic is not None:
        dynamic, gathered = dynamic_latency(archive, archive.dynamic, dense, device, protocol)
        latency += dynamic
    compact = archive.network.to(device)
    peaks = {
        str(batch): peak_bytes(compact, torch.zeros(batch, *shape, device=device))
        for batch in protocol.batches
    }
    return {"latency": latency, "peak_bytes": peaks, "gathered": gathered}
