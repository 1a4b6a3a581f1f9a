"""A summary shows one point of each method, and chooses it without a look at the test split."""

from collections.abc import Callable

import pandas
from records_factory import point_record, train_record

from bench.records.schema import Failure
from bench.report.summary import cheapest_points

Frames = Callable[..., pandas.DataFrame]


def frame_with(frame_of: Frames, points: dict[tuple[str, float], tuple[float, float]]) -> pandas.DataFrame:
    """(label, strength) → (validation accuracy, fraction of the network kept), three seeds each; test accuracy is
    turned round, so that a choice by it would be another one."""
    records = []
    for (label, strength), (_, keep) in points.items():
        for seed in range(3):
            train = train_record(label, seed=seed)
            records += [train, point_record(train, strength, 0.9, keep)]
    frame = frame_of(records)
    for (label, strength), (accuracy, _) in points.items():
        rows = (frame["label"] == label) & (frame["strength"] == strength)
        frame.loc[rows, "validation_accuracy"] = accuracy
        frame.loc[rows, "test_accuracy"] = 1.9 - accuracy
    return frame


def chosen(frame: pandas.DataFrame) -> dict[str, list[float]]:
    found = cheapest_points(frame)
    return {label: sorted(set(rows["strength"])) for label, rows in found.groupby("label")}


def test_the_cheapest_that_is_good_enough_on_validation(frame_of: Frames) -> None:
    points = {
        ("dense", 0.0): (0.97, 1.0),
        ("magnitude", 0.5): (0.968, 0.5),
        ("magnitude", 0.75): (0.961, 0.3),
        ("magnitude", 0.9): (0.94, 0.1),
        ("random", 0.5): (0.95, 0.5),
        ("random", 0.9): (0.90, 0.1),
    }
    frame = frame_with(frame_of, points)
    assert chosen(frame) == {"dense": [0.0], "magnitude": [0.75], "random": [0.5]}


def test_a_strength_with_a_failed_seed_is_not_chosen_but_failures_alone_are_shown(frame_of: Frames) -> None:
    points = {("dense", 0.0): (0.97, 1.0), ("magnitude", 0.5): (0.97, 0.5), ("magnitude", 0.75): (0.97, 0.3)}
    frame = frame_with(frame_of, points)
    failed = train_record("random", seed=0)
    other = frame_of(
        [failed, point_record(failed, 0.5, failure=Failure(kind="collapsed", reason="no units"))]
    )
    frame = pandas.concat([frame, other], ignore_index=True)
    last = (frame["strength"] == 0.75) & (frame["seed"] == 2)
    frame.loc[last, "status"] = "failed"
    assert chosen(frame) == {"dense": [0.0], "magnitude": [0.5], "random": [0.5]}


def test_a_strength_that_not_every_seed_has_reached_is_not_chosen(frame_of: Frames) -> None:
    """Of a run that was cut short: the one seed that has reached it may be a good one."""
    points = {("dense", 0.0): (0.97, 1.0), ("magnitude", 0.5): (0.968, 0.5), ("magnitude", 0.9): (0.97, 0.1)}
    frame = frame_with(frame_of, points)
    assert chosen(frame) == {"dense": [0.0], "magnitude": [0.9]}
    cut = frame[(frame["strength"] != 0.9) | (frame["seed"] == 1)]
    assert chosen(cut) == {"dense": [0.0], "magnitude": [0.5]}
