"""What the tests of the command line share: no account, no data root, and one small results folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from methods import registry
from tests.cli.folders import run_here, write


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No data of the machine's, no method file of another test, no `.pyc` beside one."""
    monkeypatch.delenv("BENCH_DATA", raising=False)
    registry._from_files.clear()
    yield
    registry._from_files.clear()


@pytest.fixture
def plan_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plan in this process, which has torch already, in place of one that has to import it."""
    from bench import run

    monkeypatch.setattr(run, "plan_elsewhere", run._make_plan)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder without measurements; beside it the suite. To be read, not changed."""
    os.environ.pop("BENCH_DATA", None)
    folder = tmp_path_factory.mktemp("finished")
    run_here(write(folder / "few.toml"), folder / "results")
    return folder / "results"
