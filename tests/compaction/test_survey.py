"""Models of torchvision, one of each kind that needs something of its own, and the table."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from torchvision import models

from bench.compaction.survey import Row, survey, table


@pytest.mark.parametrize(
    ("name", "sites", "pinned"), [("shufflenet_v2_x0_5", 37, ()), ("mobilenet_v3_small", 27, ())]
)
def test_half_of_a_model(name: str, sites: int, pinned: tuple[str, ...]) -> None:
    row = survey(name)
    assert (row.sites, row.pinned, row.reason) == (sites, pinned, "")
    assert row.removed == row.units // 2
    assert row.difference <= 1e-9
    assert row.after < 0.55 * row.before


def test_table() -> None:
    good = Row("one", 32, 3, 1, 64, 30, 2_000_000, 500_000, 1e-15, ("a.b: LayerNorm", "c: LayerNorm"))
    bad = Row("two", before=3_000_000, reason="no image of 32 pixels does")
    lines = list(table([good, bad]))
    assert lines[2] == "| one | 32 | 3 (1) | 32 | 30 | 2.00 → 0.50 M (−75 %) | 1.0e-15 | LayerNorm |"
    assert lines[3] == "| two | | | | | 3.00 M | | no image of 32 pixels does |"
    assert len({line.count("|") for line in lines}) == 1
    assert math.isnan(bad.difference)


def test_the_docs_name_every_model_and_certify_it_or_say_why_not() -> None:
    text = (Path(__file__).parents[2] / "docs" / "compaction.md").read_text(encoding="utf-8")
    lines = text[text.index("| model | image |") :].splitlines()[2:]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")]
    assert {row[0] for row in rows} >= set(models.list_models(module=models))
    assert all(float(row[6]) <= 1e-9 if row[6] else row[7] for row in rows)
