"""`bench verify`: whether the networks of a results folder still say what its records say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import methods
from bench import data
from bench.cells import Cell
from bench.compaction import find_sites, load_archive
from bench.compaction.archive import ARCHITECTURE
from bench.compaction.verify import FLOAT32_BOUND, difference
from bench.data.batches import Normalise, evaluation_batch, ordered
from bench.errors import EXIT_DONE, EXIT_SOME_FAILED, BadInput, CellFailed
from bench.execute import layout
from bench.execute.cell import CellRun
from bench.filters import Filters
from bench.folder import in_one_line
from bench.measure.accuracy import score
from bench.measure.cost import cost
from bench.measure.dynamic import dynamic_cost, with_gate_cost
from bench.plan import identify
from bench.records.read import Records, read_records
from bench.records.schema import PROTOCOL_VERSION, DynamicCost, PointRecord, TrainRecord
from bench.records.select import select_points, title
from bench.sources import source_digest, source_file

if TYPE_CHECKING:
    from rich.console import Console

LOSS_BOUND = 1e-4
"""Relative: another processor sums in another order."""

CPU = torch.device("cpu")


def verify_results(results: Path, filters: Filters, data_root: Path | None, console: Console) -> int:
    """One line for each disagreement, and a summary; the exit code: 0, or 3 where there is any.

    Every compact network is loaded from its archive, scored on the test split and counted again. Where the trained
    network is still there, plan, masked reference and certificate are made again too. Runs on the CPU.
    """
    records = read_records(results)
    points = select_points(records, filters, results)
    if not any(_has_archive(point, records) for point in points):
        raise BadInput(f"results folder {results}: no compact network of these points")
    for dataset in sorted({point.workload.dataset for point in points}):
        data.load(dataset, data_root)  # missing data is said before anything else
    disagreements = remade = 0
    for point in points:
        folder = records.files["point", point.id].parent.parent
        found = list(_archived(point, folder, data_root))
        cell = _cell(point, records)
        if not found and cell is not None:
            again = _remade(point, cell, folder, data_root)
            remade += again is not None
            found += again or []
        for fault in found:
            console.print(
                f"{title(point)} ({point.id}): {fault}", highlight=False, markup=False, soft_wrap=True
            )
        disagreements += len(found)
    console.print(
        f"{len(points)} points verified, {remade} of them made again from their trained network; "
        f"{disagreements or 'no'} disagreement{'' if disagreements == 1 else 's'}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    return EXIT_SOME_FAILED if disagreements else EXIT_DONE


def _has_archive(point: PointRecord, records: Records) -> bool:
    folder = records.files["point", point.id].parent.parent
    return (layout.compact(folder, point.id) / ARCHITECTURE).is_file()


def _archived(point: PointRecord, folder: Path, data_root: Path | None) -> Iterator[str]:
    """What the compact network of the archive says otherwise than the record."""
    workload = point.workload
    dataset = data.load(workload.dataset, data_root)
    if dataset.fingerprint != workload.dataset_fingerprint:
        yield f"data set {workload.dataset}: not the data of the record (fingerprint {dataset.fingerprint})"
        return
    try:
        archive = load_archive(layout.compact(folder, point.id))
        network, example = archive.gated(), torch.zeros(1, *dataset.input_shape)
        counted = cost(archive.network, example)
        gating: DynamicCost | None = None
        if archive.dynamic is not None:
            gates, sites = archive.dynamic.gates, find_sites(archive.network, example)
            counted = with_gate_cost(counted, gates)
            gating = dynamic_cost(archive.network, sites, gates, point.expected_activity, example)
        test = data.load_test(workload.dataset, data_root)
        scores = score(
            network, ordered(test, evaluation_batch(dataset.input_shape), Normalise.of(dataset, CPU))
        )
    except (BadInput, CellFailed, ValueError, RuntimeError) as error:
        yield str(error) if isinstance(error, BadInput | CellFailed) else in_one_line(error)
        return
    whole = not _lacks_gates(point)
    if point.cost is not None:
        for key in ("parameters", "nonzero", "macs") if whole else ("macs",):
            now, then = getattr(counted, key), getattr(point.cost, key)
            if now != then:
                yield f"{key} {now}, the record says {then}"
    if gating != point.dynamic:
        yield f"work of the gates {gating}, the record says {point.dynamic}"
    if point.test is not None and whole:
        ties = _ties(network, dataset, test)
        if abs(scores.accuracy - point.test.accuracy) * scores.images > ties + 0.5:
            yield f"test accuracy {scores.accuracy:.6f}, the record says {point.test.accuracy:.6f}"
        if abs(scores.loss - point.test.loss) > LOSS_BOUND * max(abs(point.test.loss), 1e-3):
            yield f"test loss {scores.loss:.6g}, the record says {point.test.loss:.6g}"


def _lacks_gates(point: PointRecord) -> bool:
    """Whether the record is of a time when archives had no input gates; they count in its scores and sizes."""
    return bool(point.expected_activity) and point.dynamic is None


@torch.inference_mode()
def _ties(network: torch.nn.Module, dataset: data.split.Dataset, test: data.split.Split) -> int:
    """Images whose two largest logits are so close that another machine may order them otherwise."""
    close = 0
    for batch in ordered(test, evaluation_batch(dataset.input_shape), Normalise.of(dataset, CPU)):
        logits = network(batch.inputs)
        best = logits.topk(2, dim=1).values
        close += int((best[:, 0] - best[:, 1] <= FLOAT32_BOUND * logits.abs().amax(1)).sum())
    return close


def _cell(point: PointRecord, records: Records) -> Cell | None:
    """The cell that made a point, as far as its method is still what it was; None where that cannot be had."""
    train = records.train.get(point.train_id)
    settings = point.method
    if not isinstance(train, TrainRecord) or train.protocol_version != PROTOCOL_VERSION:
        return None
    file = settings.source if settings.by_path() else None
    try:
        kind = methods.get(settings.name) if file is None else methods.load_file(Path(file))
        now = source_digest(source_file(kind, file))
        settings = settings.model_copy(update={"source_digest": now})
        id = identify(point.workload, settings, kind, train.strength, point.seed)
    except (ValueError, OSError):  # the method is gone, or its file does not load any more
        return None
    if id != point.train_id:  # an edited file, or other defaults: another method
        return None
    return Cell(
        suite=point.suite,
        workload=point.workload,
        method=settings,
        method_file=file,
        seed=point.seed,
        strength=train.strength,
        train_id=point.train_id,
        points=((point.strength, point.id),),
        pretraining=None,
        steps=0,
        step_macs=0.0,
        point_macs=0.0,
        training_rate=1.0,
        measure_seconds=0.0,
    )


def _remade(point: PointRecord, cell: Cell, folder: Path, data_root: Path | None) -> list[str] | None:
    """What plan, reference and certificate say otherwise, made anew; None where the trained network is not there."""
    run = CellRun(cell, folder, data_root, CPU, lambda fraction, doing: None)
    run.open_data()
    test = data.load_test(point.workload.dataset, data_root)
    normalise = Normalise.of(run.dataset, CPU)
    try:
        trained = run.reload()
        if trained is None:
            return None
        proven = run.prove(trained, point.strength, test, normalise)
    except Exception as error:  # of a method's own code, too
        return [f"cannot be made again: {in_one_line(error)}"]
    if not proven.certificate.passed:
        return [f"made again, it has no certificate: {proven.certificate.reason}"]
    archived = load_archive(layout.compact(folder, point.id)).gated()
    sizes = {site: len(units) for site, units in proven.compacted.architecture.kept.items()}
    faults = [
        f"{site}: the plan keeps {size} units, the record says {point.kept[site]}"
        for site, size in sizes.items()
        if site in point.kept and point.kept[site] != size
    ]
    if _lacks_gates(point):
        return faults
    batches = (batch.inputs for batch in ordered(test, evaluation_batch(run.dataset.input_shape), normalise))
    apart = difference(proven.reference, archived, batches)
    if not apart <= FLOAT32_BOUND:
        faults.append(f"the archived network differs from the masked one by {apart:.2g} of the output scale")
    return faults
