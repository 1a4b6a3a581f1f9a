"""Every discovered method with its defaults, and every entry of the main suite, through one short real training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

import methods
from bench import suite
from bench.execute.cell import CellRun
from bench.filters import Filters
from bench.plan import Cell, make_plan
from bench.records.schema import PointRecord, TrainRecord
from bench.records.store import Store
from methods.base import Method

EPOCHS = 4
NETWORK = "digits-cnn"


@dataclass(frozen=True)
class Case:
    """A method with one setting."""

    name: str
    config: dict[str, Any] = field(default_factory=dict)

    def create(self) -> Method:
        return methods.create(self.name, **self.config)

    def __str__(self) -> str:
        return "-".join([self.name, *(f"{key}={value}" for key, value in self.config.items())])


def all_cases() -> list[Case]:
    """The defaults first; an entry of the suite that equals them is not run twice."""
    cases = [Case(name) for name in methods.available()]
    for entry in suite.load("digits").methods:
        case = Case(entry.name, entry.config)
        if case.create().config not in [c.create().config for c in cases if c.name == case.name]:
            cases.append(case)
    return cases


def cells_of(case: Case, strengths: tuple[float, ...] | None = None, seed: int = 0) -> list[Cell]:
    """The cells of one method on the digits, with a budget of a few epochs."""
    small = suite.Suite.model_validate(
        {
            "name": "contract",
            "title": "contract",
            "seeds": [seed],
            "workloads": [
                {
                    "dataset": "digits",
                    "network": NETWORK,
                    "recipe": {"epochs": EPOCHS, "batch_size": 128, "learning_rate": 4e-3},
                }
            ],
            "methods": [{"name": case.name, "config": case.config, "strengths": strengths}],
        }
    )
    return make_plan(small, Filters(), None).cells


@dataclass
class Outcome:
    """What one cell has left in a results folder."""

    results: Path
    train: TrainRecord
    points: list[PointRecord]


def run_cell(cell: Cell, results: Path) -> Outcome:
    torch.set_num_threads(1)
    CellRun(cell, results, None, torch.device("cpu"), lambda fraction, doing: None).run()
    store = Store(results)
    train = store.read("train", cell.train_id)
    points = [store.read("point", point) for _, point in cell.points]
    assert isinstance(train, TrainRecord)
    return Outcome(results, train, [point for point in points if isinstance(point, PointRecord)])


@pytest.fixture(params=all_cases(), ids=str, scope="session")
def case(request: pytest.FixtureRequest) -> Case:
    chosen: Case = request.param
    return chosen


@pytest.fixture(scope="session")
def strength(case: Case) -> float:
    """A strength in the middle of the method's own grid."""
    grid = case.create().strengths
    return grid[len(grid) // 2]


@pytest.fixture(scope="session")
def outcome(case: Case, strength: float, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    """One run of the case, shared by the tests that only look at it."""
    (cell,) = cells_of(case, (strength,))
    yield run_cell(cell, tmp_path_factory.mktemp("outcome"))
