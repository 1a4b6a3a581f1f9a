"""A second start of a finished run: what the plan was, so that nothing heavy has to be imported to see all is done.

The remembered plan is valid for the same request and the same sources only; whatever differs, the plan is made anew.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel

import bench
from bench.records.schema import Stage
from bench.records.store import Store


class Remembered(BaseModel):
    """The ids that a finished run has records for; request: digest of what was asked for."""

    request: str
    trains: list[str]
    points: list[str]
    measures: list[str]


def request_digest(words: Sequence[Any], files: Sequence[Path]) -> str:
    """Of the words of a request, the contents of its files, and the sources of the suite itself."""
    digest = hashlib.sha256(json.dumps([str(word) for word in words]).encode())
    package = Path(bench.__file__).parent
    sources = sorted(package.rglob("*.py")) + sorted((package.parent / "methods").rglob("*.py"))
    for path in [*files, *sources]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def data_stamp(name: str, root: Path | None) -> str:
    """Changes when the files of a data set by path, or of one in the data root, change: of a folder all those in it."""
    own = Path(os.path.expanduser(name))
    paths = [own] if root is None else [own, root / f"{name}.npz", root / name]
    digest = hashlib.sha256()
    for path in dict.fromkeys(paths):
        for file in _files(path):
            with suppress(OSError):  # a link to nowhere
                stat = os.stat(file)
                digest.update(f"{file} {stat.st_size} {stat.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _files(path: Path) -> Iterator[str]:
    """The file itself, or all in the folder, in one order."""
    if not path.is_dir():
        yield str(path)
    for folder, inner, files in os.walk(path, followlinks=True):
        inner.sort()
        yield from (os.path.join(folder, file) for file in sorted(files))


def remember(results: Path, remembered: Remembered) -> None:
    (results / "plan.json").write_text(remembered.model_dump_json(), encoding="utf-8")


def recall(results: Path, request: str) -> Remembered | None:
    """The plan of the same request, or None."""
    try:
        remembered = Remembered.model_validate_json((results / "plan.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return remembered if remembered.request == request else None


def failures(store: Store, remembered: Remembered) -> int | None:
    """How many of the remembered points and measurements failed, as `bench run` counts; None where a record is
    missing."""
    stages: dict[Stage, list[str]] = {
        "train": remembered.trains,
        "point": remembered.points,
        "measure": remembered.measures,
    }
    found = {stage: [store.status(stage, record) for record in ids] for stage, ids in stages.items()}
    if any(None in statuses for statuses in found.values()):
        return None
    return found["point"].count("failed") + found["measure"].count("failed")
