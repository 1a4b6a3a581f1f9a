"""Records into a tidy pandas DataFrame, one row per thing measured."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from bench.errors import BadInput, nearest
from bench.records.files import NotARecord, load, warn_skipped
from bench.records.schema import RECORD_TYPES, MeasureRecord, PointRecord, Stage, TrainRecord

if TYPE_CHECKING:
    import pandas


class Records(NamedTuple):
    """By id. files: (stage, id) → where the record was read."""

    train: dict[str, TrainRecord]
    point: dict[str, PointRecord]
    measure: dict[str, MeasureRecord]
    files: dict[tuple[str, str], Path]


def read_records(directory: str | Path) -> Records:
    """All records below `directory`: every `*.json` in a folder named after a stage, at any depth, through links too.

    A file that is no record is skipped with a warning that names it. Of two records with the same id (a
    published copy, say) the newer one counts. Raises `BadInput` where `directory` is no folder.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise BadInput(f"results folder {directory}: there is no such folder")
    found = Records({}, {}, {}, {})
    by_stage: dict[str, dict[str, Any]] = {
        "train": found.train,
        "point": found.point,
        "measure": found.measure,
    }
    for path, stage in _candidates(directory):
        try:
            record = load(path)
        except (NotARecord, OSError) as error:
            warn_skipped(path, error)
            continue
        if record.kind != stage:
            warn_skipped(path, NotARecord(f"a {record.kind} record in the wrong folder"))
            continue
        known = by_stage[record.kind].get(record.id)
        if known is None or known.created < record.created:
            by_stage[record.kind][record.id] = record
            found.files[record.kind, record.id] = path
    return found


def read_results(
    directory: str | Path, stage: Stage = "point", latency_device: str | None = None
) -> pandas.DataFrame:
    """The results below `directory` as a tidy DataFrame; `results/README.md` lists its columns.

    stage: `point` gives one row per operating point, done or failed, with what its training cost and its
    latency; `train` one row per training; `measure` one row per device, clock and batch size.

    A point row has the latency of ONE device, the same for all rows of a data set and network, so that no two rows of a
    table compare different hardware: `latency_device`, by default the one that most of these points were measured on.
    NaN where a point was not measured there; the other devices are in `stage="measure"`.
    """
    from bench.records import frame

    if stage not in get_args(Stage):
        raise BadInput(f"stage {stage!r} is unknown{nearest(str(stage), RECORD_TYPES)}")
    records = read_records(directory)
    if stage == "train":
        return frame.train_frame(records)
    if stage == "measure":
        return frame.measure_frame(records)
    return frame.point_frame(records, latency_device)


def _candidates(directory: Path) -> list[tuple[Path, str]]:
    """With the stage. Links are followed, as `Store` does, whose folders may lie elsewhere; one that is called after no
    stage counts as what it leads to."""
    found: list[tuple[Path, str]] = []
    seen = set()
    for folder, folders, names in os.walk(directory, followlinks=True):
        there = os.path.realpath(folder)
        called, leads_to = os.path.basename(os.path.abspath(folder)), os.path.basename(there)
        stage = next((name for name in (called, leads_to) if name in RECORD_TYPES), "")
        if (there, stage) in seen:  # links that lead back, or to the same place
            folders.clear()
            continue
        seen.add((there, stage))
        folders.sort()
        if stage:
            found += [(Path(folder, name), stage) for name in sorted(names) if name.endswith(".json")]
    return found
