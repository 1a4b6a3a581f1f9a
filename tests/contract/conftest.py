"""Short real trainings of every case, shared by the tests that only look at them."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest

from bench.records.schema import TrainRecord
from tests.contract.cases import Case, Outcome, Straight, all_cases, cells_of, run_cell, train_straight


@pytest.fixture(params=all_cases(), ids=str, scope="session")
def case(request: pytest.FixtureRequest) -> Case:
    chosen: Case = request.param
    return chosen


@pytest.fixture(scope="session")
def strength(case: Case) -> float:
    """A strength in the middle of the method's own grid."""
    grid = case.create().grid
    return grid[len(grid) // 2]


@pytest.fixture(scope="session")
def outcome(case: Case, strength: float, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """One run of the case."""
    (cell,) = cells_of(case, (strength,))
    return run_cell(cell, tmp_path_factory.mktemp("outcome"))


@pytest.fixture(scope="session")
def straight(case: Case, strength: float) -> Straight:
    """The same training without the cell around it."""
    return train_straight(case, strength)


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], TrainRecord]:
    """(Network, seed) → plain training."""

    @functools.cache
    def train(network: str, seed: int) -> TrainRecord:
        (cell,) = cells_of(Case("dense"), (0.0,), seed, network)
        return run_cell(cell, tmp_path_factory.mktemp("dense")).train

    return train


@pytest.fixture(scope="session")
def dense(case: Case, plain: Callable[[str, int], TrainRecord]) -> dict[int, TrainRecord]:
    """Seed → plain training of the network of the case."""
    return {seed: plain(case.network, seed) for seed in (0, 1)}
