"""Let the tests of this folder import `records_factory`, and give them frames."""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas
import pytest

import bench
from bench.records.files import AnyRecord
from bench.records.store import Store

sys.path.insert(0, str(Path(__file__).parents[1]))


@pytest.fixture
def frame_of(tmp_path: Path) -> Callable[[Iterable[AnyRecord]], pandas.DataFrame]:
    """Write records to a folder and read them as a point frame, the way a user gets one."""

    def read(records: Iterable[AnyRecord]) -> pandas.DataFrame:
        store = Store(tmp_path / "results")
        for stage in ("train", "point", "measure"):
            (store.root / stage).mkdir(parents=True, exist_ok=True)
        for record in records:  # not `store.write`, whose flush to the disk takes most of a test's time
            store.path(record.kind, record.id).write_text(record.model_dump_json())
        return bench.read_results(store.root)

    return read
