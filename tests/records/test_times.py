"""What records took: sums by part, a shared pretraining once."""

from pathlib import Path

from records_factory import measure_record, point_record, train_record

from bench.execute.progress import spent_in_words
from bench.records.read import read_records
from bench.records.schema import Failure
from bench.records.store import Store
from bench.records.times import Spent, spent


def test_sums_by_part(tmp_path: Path) -> None:
    shares = {"shared_pretraining": "p-s0", "shared_seconds": 200.0}
    first = train_record("magnitude").model_copy(update={"seconds": 100.0, **shares})
    second = train_record("random").model_copy(update={"seconds": 50.0, **shares})
    older = train_record("beta").model_copy(update={"seconds": 1.0, "shared_pretraining": "q-s0"})
    failed = train_record("dense", failure=Failure(kind="diverged", reason="x")).model_copy(
        update={"seconds": 7.0}
    )
    points = [point_record(first, strength).model_copy(update={"seconds": 3.0}) for strength in (0.5, 0.9)]
    measure = measure_record(points[0]).model_copy(update={"seconds": 0.5})
    for record in (first, second, older, failed, *points, measure):
        Store(tmp_path).write(record)
    records = read_records(tmp_path)
    everything = spent(records)
    assert everything == Spent(training=158.0, pretraining=200.0, points=6.0, latency=0.5, untold=1)
    assert everything.total == 364.5
    assert spent(records, {second.id, points[1].id}) == Spent(50.0, 200.0, 3.0, 0.0)
    said = spent_in_words(everything)
    assert said.startswith(
        "measured 6 min (training 3 min, shared pretraining 3 min, points 6 s, latency 1 s)"
    )
    assert said.endswith("without 1 shared pretrainings that do not tell")
