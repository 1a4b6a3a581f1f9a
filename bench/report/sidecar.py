"""What stands beside every view: the records it was made from."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.records.files import write_atomically

if TYPE_CHECKING:
    import pandas


def made_from(frame: pandas.DataFrame) -> dict[str, Any]:
    """The ids of the records behind a point frame, and a digest of what they say.

    Two frames have the same digest exactly when they hold the same values, wherever the files lie.
    """
    ordered = frame.drop(columns="file", errors="ignore").sort_values(["train_id", "strength"], kind="stable")
    names = {"train": "train_id", "point": "id", "measure": "measure_id"}
    return {
        "records_digest": hashlib.sha256(ordered.to_csv(index=False).encode()).hexdigest()[:16],
        "records": {stage: sorted(frame[name].dropna().unique()) for stage, name in names.items()},
    }


def write_sidecar(path: Path, frame: pandas.DataFrame, **more: Any) -> Path:
    """Write what `made_from` says of `frame`, and `more`, to `path` as JSON."""
    text = json.dumps({**more, **made_from(frame)}, indent=1, ensure_ascii=False) + "\n"
    write_atomically(path, text.encode())
    return path
