"""One short real training of every case, shared by the tests that only look at it."""

from __future__ import annotations

import pytest

from tests.contract.cases import Case, Outcome, all_cases, cells_of, run_cell


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
def outcome(case: Case, strength: float, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """One run of the case."""
    (cell,) = cells_of(case, (strength,))
    return run_cell(cell, tmp_path_factory.mktemp("outcome"))
