"""Synthetic records, as a run would leave them: made up, but shaped like real ones."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from typing import Any

from bench.records import ids
from bench.records.files import AnyRecord
from bench.records.schema import (
    CertificatePart,
    Cost,
    Failure,
    LatencyPart,
    Machine,
    MeasureRecord,
    MethodSettings,
    PointRecord,
    Scores,
    TrainRecord,
    Workload,
)

CPU = "Imaginary CPU 2 GHz"
GPU = "Imaginary GPU"
DENSE = {"mlp-300-100": (50_610, 50_200), "digits-cnn": (23_000, 410_000), "lenet5": (431_080, 2_293_000)}
"""network → parameters, MACs."""

METHODS: dict[str, tuple[str, str, float]] = {
    "dense": ("none", "none", 0.0),
    "thin-dense": ("unit", "ratio", 0.020),
    "random": ("unit", "ratio", 0.045),
    "magnitude": ("unit", "ratio", 0.015),
    "magnitude-weights": ("weight", "ratio", 0.006),
    "targeted-dropout": ("unit", "ratio", 0.010),
}
"""label → granularity, kind of strength, how fast accuracy falls."""


def workload(network: str = "digits-cnn", epochs: int = 4, dataset: str = "digits") -> Workload:
    return Workload(
        dataset=dataset,
        dataset_fingerprint=f"f1-{dataset}",
        network=network,
        recipe={"epochs": epochs, "batch_size": 64, "learning_rate": 0.1},
    )


def settings(label: str = "magnitude", **config: Any) -> MethodSettings:
    granularity, kind, _ = METHODS.get(label, ("unit", "ratio", 0.02))
    return MethodSettings(
        name=label.removesuffix("-weights"),
        label=label,
        config={"granularity": granularity, **config},
        granularity=granularity,
        strength_kind=kind,
        source="builtin",
    )


def machine(device: str = CPU) -> Machine:
    return Machine(device=device, processor=CPU, cores=2, memory_gb=8.0, system="Linux", threads=1)


def _shared(stage: str, suite: str, seed: int, failure: Failure | None, created: str) -> dict[str, Any]:
    return {
        "kind": stage,
        "suite": suite,
        "seed": seed,
        "status": "failed" if failure else "done",
        "failure": failure,
        "created": created,
        "seconds": 1.5,
        "versions": {"sparsebench": "0.1.0", "torch": "2.13.0"},
    }


def train_record(
    label: str = "magnitude",
    network: str = "digits-cnn",
    seed: int = 0,
    strength: float | None = None,
    failure: Failure | None = None,
    epochs: int = 4,
    suite: str = "digits",
    created: str = "2026-01-02T03:04:05Z",
    dataset: str = "digits",
    **config: Any,
) -> TrainRecord:
    work, method = workload(network, epochs, dataset), settings(label, **config)
    id = ids.train_id(
        work.dataset,
        work.dataset_fingerprint,
        work.network,
        work.recipe,
        {},
        method.label,
        method.config,
        {},
        strength,
        seed,
    )
    history = [
        {
            "epoch": epoch,
            "phase": "train",
            "train_loss": 1 / (epoch + 1),
            "validation_loss": 1.1 / (epoch + 1),
            "validation_accuracy": 1 - 0.5 / (epoch + 1),
        }
        for epoch in range(epochs)
    ]
    return TrainRecord(
        **_shared("train", suite, seed, failure, created),
        id=id,
        workload=work,
        method=method,
        machine=machine(),
        strength=strength,
        epochs={"train": epochs},
        steps=epochs * 20,
        step_milliseconds=0.8,
        peak_rss_bytes=400_000_000,
        initial_weights=f"w{seed}",
        data_order=f"o{seed}",
        history=history,
    )


def point_record(
    train: TrainRecord,
    strength: float,
    accuracy: float = 0.97,
    keep: float | None = None,
    failure: Failure | None = None,
    created: str = "2026-01-02T03:05:05Z",
) -> PointRecord:
    """keep: fraction of the units that stay, by default 1 - strength."""
    parameters, macs = DENSE[train.workload.network]
    keep = 1 - strength if keep is None else keep
    weights_only = train.method.granularity == "weight"
    width = 1.0 if weights_only else keep
    dense = Cost(
        parameters=parameters,
        nonzero=parameters,
        macs=macs,
        weight_bytes=4 * parameters,
        peak_bytes=5 * parameters,
        weights=parameters,
        nonzero_weights=parameters,
    )
    left = max(10, round(parameters * width**2))
    nonzero = max(10, round(parameters * keep)) if weights_only else left
    cost = Cost(
        parameters=left,
        nonzero=nonzero,
        macs=max(10, round(macs * width**1.8)),
        weight_bytes=4 * left,
        peak_bytes=5 * left,
        weights=left,
        nonzero_weights=nonzero,
    )
    scores = Scores(accuracy=accuracy, loss=1 - accuracy, calibration_error=0.01, images=360)
    results: dict[str, Any] = {}
    if failure is None:
        results = {
            "validation": scores,
            "test": scores,
            "masked_validation": scores,
            "masked_test": scores,
            "cost": cost,
            "dense_cost": dense,
            "certificate": CertificatePart(
                passed=True,
                difference_float64=2e-15,
                difference_float32=3e-7,
                top1_changes=0,
                images=360,
                removed_units=round(96 * (1 - width)),
                kept_constant_units=0,
            ),
            "kept": {"conv1": round(32 * width), "conv2": round(64 * width)},
            "sizes": {"conv1": 32, "conv2": 64},
        }
    return PointRecord(
        **_shared("point", train.suite, train.seed, failure, created),
        id=ids.point_id(train.id, strength),
        workload=train.workload,
        method=train.method,
        machine=machine(),
        train_id=train.id,
        strength=strength,
        **results,
    )


def latency_part(
    batch: int, compact: float, dense: float, clock: str = "host", engine: str = "eager"
) -> LatencyPart:
    return LatencyPart(
        clock=clock,  # type: ignore[arg-type]
        batch=batch,
        engine=engine,
        dtype="fp32",
        layout="contiguous",
        calls=200,
        blocks=20,
        compact_median=compact,
        compact_p10=compact * 0.97,
        compact_p90=compact * 1.05,
        dense_median=dense,
        dense_p10=dense * 0.97,
        dense_p90=dense * 1.05,
        speedup=dense / compact,
        speedup_low=dense / compact * 0.98,
        speedup_high=dense / compact * 1.02,
        unstable=False,
    )


def measure_record(
    point: PointRecord,
    device: str = CPU,
    created: str = "2026-01-02T03:06:05Z",
    latency: list[LatencyPart] | None = None,
    failure: Failure | None = None,
    protocol: dict[str, Any] | None = None,
) -> MeasureRecord:
    if latency is None and failure is None:
        assert point.cost is not None
        assert point.dense_cost is not None
        share = point.cost.macs / point.dense_cost.macs
        latency = [latency_part(batch, t * (0.3 + 0.7 * share), t) for batch, t in ((1, 0.2), (256, 9.0))]
    protocol = protocol or {"calls": 200}
    return MeasureRecord(
        **_shared("measure", point.suite, point.seed, failure, created),
        id=ids.measure_id(point.id, device, protocol),
        workload=point.workload,
        method=point.method,
        machine=machine(device),
        point_id=point.id,
        strength=point.strength,
        device="cuda" if device == GPU else "cpu",
        protocol=protocol,
        latency=latency or [],
        peak_bytes={"1": 1000, "256": 200_000},
    )


def suite_records(
    networks: Iterable[str] = ("mlp-300-100", "digits-cnn"),
    labels: Iterable[str] = tuple(METHODS),
    strengths: Iterable[float] = (0.5, 0.75, 0.9, 0.97),
    seeds: Iterable[int] = (0, 1, 2),
    measured: bool = True,
) -> list[AnyRecord]:
    """A whole suite. Accuracy falls with the fraction removed and collapses for `random` at the end."""
    records: list[AnyRecord] = []
    for network in networks:
        for label in labels:
            steepness = METHODS[label][2] if label in METHODS else 0.01 + 0.003 * (len(label) % 7)
            for seed in seeds:
                noise = random.Random(f"{network}{label}{seed}")
                base = 0.975 + noise.gauss(0, 0.003)
                train = train_record(label, network, seed)
                records.append(train)
                for strength in (0.0,) if label == "dense" else strengths:
                    drop = (
                        steepness * (math.expm1(4.2 * strength)) / 8 + abs(noise.gauss(0, 0.002)) * strength
                    )
                    collapsed = label == "random" and strength > 0.95
                    accuracy = 0.11 + 0.01 * seed if collapsed else base - drop
                    keep = 1.0 if label == "dense" else (1 - strength) * noise.uniform(0.95, 1)
                    point = point_record(train, strength, accuracy, keep)
                    records.append(point)
                    if measured:
                        records.append(measure_record(point))
    return records
