"""Time `read_results` on 10,000 records, on one core: `python tests/performance/check_read_results.py`.

Prints; asserts nothing about time.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from records_factory import measure_record, point_record, train_record

import bench
from bench.records.store import Store

SEEDS = 910
STRENGTHS = [step / 10 for step in range(5)]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for stage in ("train", "point", "measure"):
            (root / stage).mkdir()
        records = []
        for seed in range(SEEDS):
            train = train_record(seed=seed, epochs=30)
            points = [point_record(train, strength) for strength in STRENGTHS]
            records += [train, *points, *map(measure_record, points)]
        for record in records:  # without the flushes of a store, which are not what is timed
            (root / record.kind / f"{record.id}.json").write_text(record.model_dump_json(indent=1))
        import pandas  # noqa: F401  its import is not reading

        start = time.perf_counter()
        frame = bench.read_results(root)
        seconds = time.perf_counter() - start
        print(f"read_results: {len(records):,} records to {len(frame):,} rows in {seconds:.2f} s")
        start = time.perf_counter()
        store = Store(root)
        done = sum(store.status(record.kind, record.id) == "done" for record in records)
        print(f"Store.status: {done:,} records in {time.perf_counter() - start:.2f} s")


if __name__ == "__main__":
    main()
