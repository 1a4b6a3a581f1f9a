"""The results folder: where records lie, how they get there, and what is done already.

<root>/train/<id>.json   <root>/point/<id>.json   <root>/measure/<id>.json   <root>/compact/<point id>/
"""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path

from bench.errors import BadInput
from bench.records.files import (
    AnyRecord,
    NotARecord,
    load,
    parse,
    sync_folder,
    warn_skipped,
    write_atomically,
)
from bench.records.schema import RECORD_TYPES, Stage, Status

_log = logging.getLogger("bench.records")


class Store:
    """Records under `root`. Nothing is created until the first `write`.

    A file that is not the record its name says (cut short, foreign, of a newer schema) counts as absent and
    is never overwritten: `write` first renames it to `<name>.foreign` (`.foreign-2`, … where that is taken).
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def path(self, stage: Stage, id: str) -> Path:
        """Where the record lies, or would lie."""
        return self.root / stage / f"{id}.json"

    def compact_path(self, point_id: str) -> Path:
        """The folder of the compact network of an operating point."""
        return self.root / "compact" / point_id

    def read(self, stage: Stage, id: str) -> AnyRecord | None:
        """The record, or None where there is none; a file that is no such record is logged as a warning."""
        path = self.path(stage, id)
        try:
            return _load(path, stage)
        except FileNotFoundError:
            return None
        except (NotARecord, OSError) as error:
            warn_skipped(path, error)
            return None

    def status(self, stage: Stage, id: str) -> Status | None:
        """What a resume asks: `done`, `failed`, or None where there is no readable record."""
        record = self.read(stage, id)
        return None if record is None else record.status

    def reason(self, stage: Stage, id: str) -> str:
        """`kind: reason` of a failed record, else nothing."""
        record = self.read(stage, id)
        return f"{record.failure.kind}: {record.failure.reason}" if record and record.failure else ""

    def write(self, record: AnyRecord) -> Path:
        """Write, or replace the record of the same id. On return it is on the disk. Raises `NotARecord` for one that
        could not be read back, and writes nothing: JSON has no NaN, nor infinities."""
        path = self.path(record.kind, record.id)
        text = (record.model_dump_json(indent=1) + "\n").encode()
        parse(text)
        self._set_foreign_aside(path, record.kind)
        write_atomically(path, text)
        return path

    def check_writable(self) -> None:
        """Raise `BadInput` where records could not be written. Leaves nothing behind, no folder either."""
        for folder in (self.root, *(self.root / stage for stage in RECORD_TYPES)):
            check_writable(folder, f"results folder {self.root}")

    def _set_foreign_aside(self, path: Path, stage: Stage) -> None:
        try:
            _load(path, stage)
            return
        except FileNotFoundError:
            return
        except (NotARecord, OSError) as error:
            reason = str(error)
        aside, number = path.with_name(path.name + ".foreign"), 2
        while os.path.lexists(aside):
            aside, number = path.with_name(f"{path.name}.foreign-{number}"), number + 1
        path.rename(aside)
        sync_folder(path.parent)
        _log.warning("%s: kept as %s: %s", path, aside.name, reason)


def check_writable(folder: Path, what: str) -> None:
    """Raise `BadInput` where nothing could be written to `folder`, which need not be there yet. Leaves nothing."""
    existing = next(parent for parent in (folder, *folder.parents) if os.path.lexists(parent))
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise BadInput(f"{what}: cannot write in {existing}: {error.strerror}") from None


def _load(path: Path, stage: Stage) -> AnyRecord:
    record = load(path)
    if record.kind != stage:
        raise NotARecord(f"a {record.kind} record in the folder of {stage} records")
    return record
