"""What the records of a folder took to make."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from bench.records.read import Records


class Spent(NamedTuple):
    """Seconds of the processes that did the work, one core each; failed records count too. pretraining: shared
    pretraining, each once. untold: shared pretrainings of older records, which do not say what they took."""

    training: float
    pretraining: float
    points: float
    latency: float
    untold: int = 0

    @property
    def total(self) -> float:
        return self.training + self.pretraining + self.points + self.latency


def spent(records: Records, ids: Collection[str] | None = None) -> Spent:
    """Sums over all records, or over those with one of `ids`."""
    trains, points, measures = (
        [record for record in found.values() if ids is None or record.id in ids]
        for found in (records.train, records.point, records.measure)
    )
    shared: dict[str, float | None] = {}
    for train in records.train.values():
        if train.shared_pretraining is not None and (ids is None or train.id in ids):
            known = shared.get(train.shared_pretraining)
            shared[train.shared_pretraining] = train.shared_seconds if known is None else known
    return Spent(
        training=sum(record.seconds for record in trains),
        pretraining=sum(seconds for seconds in shared.values() if seconds is not None),
        points=sum(record.seconds for record in points),
        latency=sum(record.seconds for record in measures),
        untold=sum(seconds is None for seconds in shared.values()),
    )
