"""`round_to` in a workload: compact networks of handy widths, equal to the masked ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench import suite as suites
from bench.compaction import load_compact
from bench.errors import BadInput
from bench.execute import layout
from bench.execute.subject import rounded_up
from bench.filters import Filters
from bench.plan import make_plan
from bench.records.read import read_records
from tests.cli.folders import run_here, write

SUITE = """
title = "widths"
seeds = [0]
[measure]
latency = "none"
[[workloads]]
dataset = "digits"
network = "digits-cnn"
recipe = { epochs = 4, batch_size = 256, learning_rate = 4e-3 }
[[methods]]
name = "magnitude"
strengths = [0.6]
[[methods]]
name = "thin-dense"
strengths = [0.6]
"""
ROUNDED = SUITE.replace('"digits-cnn"', '"digits-cnn"\nround_to = 8')


def test_compact_networks_are_rounded_up(tmp_path: Path) -> None:
    """Of 16 and 32 units 7 and 13 would stay. Also where a network is thin from the start."""
    widths = {}
    for name, text in (("plain", SUITE), ("rounded", ROUNDED)):
        results = tmp_path / name
        run_here(write(tmp_path / f"{name}.toml", text), results)
        for point in read_records(results).point.values():
            assert point.status == "done"
            assert point.certificate is not None
            assert point.certificate.passed
            assert point.certificate.difference_float64 <= 1e-9
            network = load_compact(layout.compact(results, point.id))
            assert {site: len(network.get_parameter(f"{site}.weight")) for site in point.kept} == point.kept
            widths[name, point.method.name] = list(point.kept.values())
            assert point.workload.round_to == (8 if name == "rounded" else 1)
    assert widths["plain", "magnitude"] == widths["plain", "thin-dense"] == [7, 13, 13]
    assert widths["rounded", "magnitude"] == widths["rounded", "thin-dense"] == [8, 16, 16]


def test_it_is_another_question_and_the_same_pretraining(tmp_path: Path) -> None:
    def cells(text: str) -> list[tuple[str, str]]:
        plan = make_plan(suites.load(str(write(tmp_path / "a.toml", text))), Filters(), None)
        return [(cell.train_id, cell.pretraining.id if cell.pretraining else "") for cell in plan.cells]

    plain, said, rounded = (cells(text) for text in (SUITE, ROUNDED.replace("= 8\n", "= 1\n"), ROUNDED))
    assert plain == said
    assert not {train for train, _ in plain} & {train for train, _ in rounded}
    assert [shared for _, shared in plain] == [shared for _, shared in rounded]


def test_a_number_that_is_none(tmp_path: Path) -> None:
    path = write(tmp_path / "a.toml", ROUNDED.replace("= 8\n", "= 0\n"))
    with pytest.raises(BadInput, match=r"workloads\.0\.round_to"):
        suites.load(str(path))


def test_masks_rounded_up() -> None:
    kept = torch.tensor([0, 0, 1, 0, 1, 1, 0, 0]).bool()
    assert torch.equal(rounded_up(kept, 1), kept)
    assert rounded_up(kept, 4).int().tolist() == [1, 0, 1, 0, 1, 1, 0, 0]
    assert rounded_up(kept, 5).int().tolist() == [1, 1, 1, 0, 1, 1, 0, 0]
    assert rounded_up(kept, 16).all()
    assert not rounded_up(torch.zeros(4).bool(), 2).any()
