"""Suites, method files and folders that the tests of the command line share."""

from __future__ import annotations

from pathlib import Path

import torch

from bench import suite as suites
from bench.execute.cell import CellRun
from bench.filters import Filters
from bench.plan import make_plan

SUITE = """
title = "a few cells"
seeds = [0]
[measure]
latency = "none"
[[workloads]]
dataset = "digits"
network = "mlp-300-100"
recipe = { epochs = 2, batch_size = 256 }
[[methods]]
name = "dense"
[[methods]]
name = "magnitude"
strengths = [0.5]
[[methods]]
name = "magnitude"
label = "weights"
strengths = [0.75]
config = { granularity = "weight" }
"""

METHOD = '''
import os, time
from pathlib import Path
import torch
from methods.base import Method, SparsityPlan, Traits

class Mine(Method):
    """Keeps all."""
    name = "mine"
    title = "Mine"
    paper = "none"
    strengths = (0.5,)
    strength_meaning = "nothing"

    @property
    def traits(self):
        return Traits("unit", "ratio", False)

    def supports(self, network, sites):
        return None if network.fc1.out_features == 300 else "made for 300 units"

    def plan(self, strength):
        return SparsityPlan()
'''


def write(path: Path, text: str = SUITE) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder, with its content."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if "__pycache__" not in path.parts
    }


def run_here(suite: Path, results: Path) -> None:
    """The train and point stages of a suite in this process: what `bench run` leaves, without its start-up."""
    torch.set_num_threads(1)
    for cell in make_plan(suites.load(str(suite)), Filters(), None).cells:
        assert CellRun(cell, results, None, torch.device("cpu"), lambda fraction, doing: None).run()
