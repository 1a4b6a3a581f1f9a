"""One record, one file: parsing that accepts nothing else, and a write that is whole or absent."""

from __future__ import annotations

import logging
import os
import secrets
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from bench.records.schema import (
    RECORD_TYPES,
    SCHEMA_VERSION,
    MeasureRecord,
    PointRecord,
    TrainRecord,
)

AnyRecord = TrainRecord | PointRecord | MeasureRecord


_log = logging.getLogger("bench.records")
_warned: set[tuple[Path, str]] = set()


class NotARecord(Exception):
    """The text is no record that this version can read. The message is the reason, in one line."""


class _Head(BaseModel):
    """What must be known before the rest can be checked."""

    model_config = ConfigDict(extra="ignore")

    schema_version: int
    kind: str
    id: str


def parse(text: bytes) -> AnyRecord:
    """The record in `text`. Raises `NotARecord` when it is cut short, foreign, or of a newer schema."""
    try:
        head = _Head.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        if first["type"] == "json_invalid":
            raise NotARecord("cut short or no JSON") from None
        raise NotARecord("no record of this suite") from None
    if head.schema_version > SCHEMA_VERSION:
        raise NotARecord(f"schema version {head.schema_version}, this reader knows up to {SCHEMA_VERSION}")
    if head.kind not in RECORD_TYPES:
        raise NotARecord(f"unknown kind {head.kind!r}")
    try:
        return RECORD_TYPES[head.kind].model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise NotARecord(f"does not fit the schema at {place!r}: {first['msg']}") from None


def load(path: Path) -> AnyRecord:
    """The record in the file `path`, which must be named after its id. Raises `NotARecord`, `OSError`."""
    record = parse(path.read_bytes())
    if path.stem != record.id:
        raise NotARecord(f"holds the record {record.id!r}, which the file is not named after")
    return record


def warn_skipped(path: Path, reason: Exception) -> None:
    """Say once, not at every look, that a file is no record."""
    if (path, str(reason)) not in _warned:
        _warned.add((path, str(reason)))
        _log.warning("%s: skipped: %s", path, reason)


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path` by `data`: whoever reads it, even after a power cut, sees the old bytes or the new ones.

    The temporary name ends in `.tmp`, so no reader takes one that was left behind for a record.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename or link in `folder` last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
