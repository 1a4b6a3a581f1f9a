"""The operating points of a results folder that pass the filters of the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.errors import BadInput, nearest, nearest_number
from bench.filters import Filters
from bench.records.read import Records
from bench.records.schema import PointRecord


def select_points(records: Records, filters: Filters, where: Path) -> list[PointRecord]:
    """The done points, sorted as a table is. Raises BadInput for a filter that no record knows, or without points."""
    points = [point for point in records.point.values() if point.status == "done"]
    if not points:
        raise BadInput(f"results folder {where}: there are no operating points in it")
    of: list[tuple[str, tuple[Any, ...], Callable[[PointRecord], set[Any]]]] = [
        ("method", (*filters.methods, *filters.files), _method_words),
        ("network", filters.networks, lambda point: {point.workload.network}),
        ("dataset", filters.datasets, lambda point: {point.workload.dataset}),
        ("strength", filters.strengths, lambda point: {point.strength}),
        ("seed", filters.seeds, lambda point: {point.seed}),
    ]
    chosen = points
    for key, wanted, words in of:
        valid = {word for point in points for word in words(point)}
        for word in wanted:
            if word not in valid:
                hint = nearest(word, valid) if isinstance(word, str) else nearest_number(word, valid)
                raise BadInput(f"--{key} {word}: results folder {where} has no such {key}{hint}")
        if wanted:
            chosen = [point for point in chosen if words(point) & set(wanted)]
    if not chosen:
        raise BadInput(f"results folder {where}: no operating point passes these filters")
    return sorted(
        chosen,
        key=lambda point: (
            point.workload.dataset,
            point.workload.network,
            point.method.label,
            point.strength,
            point.seed,
            point.id,
        ),
    )


def title(point: PointRecord) -> str:
    """What a line calls a point."""
    return f"{point.workload.network} · {point.method.label} {point.strength:g} · seed {point.seed}"


def _method_words(point: PointRecord) -> set[str]:
    return {point.method.name, point.method.label, point.method.source} - {"builtin"}
