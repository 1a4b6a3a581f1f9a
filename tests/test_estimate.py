"""What the estimate of time counts, by hand."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import estimate, suite
from bench.filters import Filters
from bench.measure.presets import estimated_seconds
from bench.plan import make_plan

SUITE = """
title = "t"
seeds = [0]
[[workloads]]
dataset = "digits"
network = "mlp-300-100"
recipe = { epochs = 8, batch_size = 128 }
[[methods]]
name = "dense"
[[methods]]
name = "magnitude"
strengths = [0.5, 0.75]
[[methods]]
name = "random"
strengths = [0.5]
[[methods]]
name = "l0-arm"
strengths = [1.0]
[[methods]]
name = "magnitude"
label = "weights"
strengths = [0.5]
config = { granularity = "weight" }
"""


def test_a_plan_counts_passes_points_latency_and_shared_training_once(tmp_path: Path) -> None:
    (tmp_path / "few.toml").write_text(SUITE, encoding="utf-8")
    plan = make_plan(suite.load(str(tmp_path / "few.toml")), Filters(), None)
    of = {
        cell.method.label: [c for c in plan.cells if c.method.label == cell.method.label]
        for cell in plan.cells
    }
    (dense,), (arm,) = of["dense"], of["l0-arm"]
    images = 2 * 216 + 4 * 359  # both splits by both networks, and the top-1 of both on test
    assert dense.point_macs == 50_200 * images
    point = estimate.POINT_SECONDS + dense.point_macs / (dense.training_rate * estimate.EVALUATION_SHARE)
    assert arm.pretraining is None
    assert estimate.own_seconds(arm) == pytest.approx(estimate.training_seconds(arm) + point)
    assert arm.step_macs > 1.3 * dense.step_macs, "a second forward pass in each step"
    assert estimate.training_seconds(arm) > estimate.training_seconds(dense)
    faster = replace(dense, training_rate=2 * dense.training_rate)
    fixed = dense.steps * estimate.STEP_SECONDS
    twice = 2 * (estimate.training_seconds(faster) - fixed)
    assert estimate.training_seconds(dense) - fixed == pytest.approx(twice)

    (random,) = of["random"]
    assert random.pretraining is not None
    sharing = [
        cell for cell in plan.cells if cell.pretraining and cell.pretraining.id == random.pretraining.id
    ]
    assert len(sharing) > 1
    once = estimate.training_seconds(random) * estimate.shared_share(random)
    assert estimate.shared_seconds(sharing) == pytest.approx(once)
    parts = estimate.own_seconds(random) + once
    assert parts == pytest.approx(estimate.training_seconds(random) + point)

    per_point = estimated_seconds("quick", 50_200, torch.device("cpu"))
    assert of["weights"][0].measure_seconds == 0
    measured = sum(len(cell.points) for cell in plan.cells) - 1
    assert estimate.measuring_seconds(plan.cells, plan.measures) == pytest.approx(measured * per_point)


def test_a_measurement_takes_what_its_protocol_asks_for() -> None:
    cpu = torch.device("cpu")
    # two batch sizes, two networks: 8 blocks of a quarter of a second and a second to warm up
    assert estimated_seconds("full", 1, cpu) == pytest.approx(2 * 2 * (8 * 0.25 + 1.0))
    assert estimated_seconds("full", 1, torch.device("cuda")) == pytest.approx(3 * 12.0)
    slow = estimated_seconds("full", 313_463_808, cpu)
    assert slow > 8 * 25 * 256 * 313_463_808 / estimate.EVALUATION_RATE, "a call may be longer than a block"
