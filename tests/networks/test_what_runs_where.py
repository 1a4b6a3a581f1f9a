"""The table of what runs where, in the documentation and as the command prints it."""

from __future__ import annotations

from pathlib import Path

import pytest

import methods
from bench import matrix, networks
from methods.network_slimming import NetworkSlimming

DOC = Path(__file__).parents[2] / "docs" / "what_runs_where.md"
CHEAP = ["digits-cnn", "lenet5", "mlp-300-100", "resnet20", "resnet20-b"]
"""Networks whose rows are made again here. The rest of the file is what `bench list matrix` printed."""


def cells(text: str) -> list[list[str]]:
    """Of the lines of the table."""
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"
    ]


def test_the_committed_table_is_what_the_command_prints() -> None:
    committed = DOC.read_text(encoding="utf-8")
    assert committed.startswith(matrix.HEADING)
    heading, _, *rows = cells(committed)
    assert heading == ["network", "inner", "streams", "branches", *matrix.builtin()]
    assert [row[0] for row in rows] == networks.available()
    made = matrix.rows(CHEAP)
    text = matrix.as_markdown(made)
    for row in cells(text)[2:]:
        assert row in rows
    assert [row.streams for row in made] == [0, 0, 0, 3, 3]
    assert [row.branches for row in made] == [0, 0, 0, 9, 7]
    assert set(text.splitlines()) <= set(committed.splitlines())


def test_a_skip_stands_there_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "available", lambda: ["dense", "network-slimming"])
    (row,) = matrix.rows(["mlp-300-100"])
    reason = row.skips["network-slimming"]
    network = networks.build("mlp-300-100", matrix.SHAPE, 10)
    assert reason is not None
    assert reason == NetworkSlimming().supports(network, [])
    assert row.skips["dense"] is None
    assert matrix.as_markdown([row]).endswith(f"| mlp-300-100 | 2 | 0 | 0 | ✓ | 1 |\n\n1. {reason}\n")
