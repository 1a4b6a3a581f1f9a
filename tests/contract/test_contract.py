"""What every method owes the harness. A method added to the folder is found and held to it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

import methods
from bench import data, networks
from bench.compaction import Architecture, apply_architecture, find_sites
from bench.data import load_test
from bench.records.schema import TrainRecord
from tests.contract.cases import (
    Case,
    Outcome,
    Straight,
    cells_of,
    open_loop,
    phases_of,
    run_cell,
)

VOLATILE = {"created", "seconds", "shared_seconds", "step_milliseconds", "peak_rss_bytes"}


def test_describes_itself(case: Case) -> None:
    method = case.create()
    assert method.name == case.name
    assert method.title
    assert method.paper
    assert method.strength_meaning
    assert list(method.strengths) == sorted(set(method.strengths))


def test_config_round_trip_and_unknown_keys(case: Case) -> None:
    config = case.create().config
    assert type(config)(**config.model_dump(mode="json")) == config
    with pytest.raises(ValidationError):
        type(config)(**config.model_dump(), no_such_key=1)


def test_the_point_is_done_and_certified(outcome: Outcome) -> None:
    (point,) = outcome.points
    assert point.status == "done", point.failure
    assert point.certificate is not None
    assert point.certificate.passed
    assert point.certificate.difference_float64 <= 1e-9
    assert point.certificate.images == len(load_test("digits", None))
    assert point.test == point.masked_test or abs(point.test.loss - point.masked_test.loss) < 1e-5  # type: ignore[union-attr]
    assert point.test.accuracy == point.masked_test.accuracy  # type: ignore[union-attr]


def test_same_seed_same_record(case: Case, strength: float, outcome: Outcome, tmp_path: Path) -> None:
    (cell,) = cells_of(case, (strength,))
    again = run_cell(cell, tmp_path)
    assert again.train.model_dump(exclude=VOLATILE) == outcome.train.model_dump(exclude=VOLATILE)
    assert [p.model_dump(exclude=VOLATILE) for p in again.points] == [
        p.model_dump(exclude=VOLATILE) for p in outcome.points
    ]


@pytest.mark.parametrize("quarters", [1, 2.4, 3])
def test_resumed_equals_straight(
    case: Case, strength: float, straight: Straight, quarters: float, tmp_path: Path
) -> None:
    """Cut at the end of an epoch, and inside one."""

    class PowerCut(Exception):
        pass

    file = tmp_path / "checkpoint"
    _, interrupted, first = open_loop(case, strength, checkpoint=file, checkpoint_seconds=math.inf)
    last_saved = round(quarters / 4 * first.context.steps)
    go_on = interrupted.after_step

    def after_step() -> None:
        go_on()
        if first.context.step == last_saved:
            first.checkpoints.seconds = 0.0
        elif first.context.step > last_saved:
            raise PowerCut

    interrupted.after_step = after_step  # type: ignore[method-assign]
    with pytest.raises(PowerCut):
        first.run(phases_of(case))
    network, method, second = open_loop(case, strength, checkpoint=file)
    second.run(phases_of(case))
    for name, value in straight.trained.items():
        assert torch.equal(network.state_dict()[name], value), name
    assert second.progress.epochs == straight.loop.progress.epochs
    assert second.progress.history == straight.loop.progress.history
    method.detach()
    one, other = straight.method.plan(strength), method.plan(strength)
    assert one.layer_actions == other.layer_actions
    assert one.kept.keys() == other.kept.keys()
    assert all(torch.equal(one.kept[site], other.kept[site]) for site in one.kept)
    assert all(torch.equal(one.weight_masks[name], other.weight_masks[name]) for name in one.weight_masks)


def test_plan_fits_the_sites(strength: float, straight: Straight) -> None:
    network, method = straight.network, straight.method
    sizes = {site.name: site.size for site in method.sites}
    before = {name: value.clone() for name, value in network.state_dict().items()}
    plan = method.plan(strength)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    for site, kept in plan.kept.items():
        assert kept.dtype == torch.bool
        assert kept.shape == (sizes[site],)
    shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
    for name, mask in plan.weight_masks.items():
        assert mask.dtype == torch.bool
        assert mask.shape == shapes[name]


def test_nothing_is_left_after_detach(case: Case, straight: Straight) -> None:
    network = straight.network
    left = Architecture(kept=straight.loop.removed)
    plain = apply_architecture(networks.build(case.network, (1, 8, 8), 10), left, torch.zeros(1, 1, 8, 8))
    assert [(n, type(m)) for n, m in network.named_modules()] == [
        (n, type(m)) for n, m in plain.named_modules()
    ]
    assert {n: v.shape for n, v in network.state_dict().items()} == {
        n: v.shape for n, v in plain.state_dict().items()
    }
    for module in network.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in network.parameters())


def test_budget_is_respected(case: Case, outcome: Outcome) -> None:
    epochs = sum(outcome.train.epochs.values())
    if case.create().traits.strength == "self":
        assert epochs <= case.epochs
    else:
        assert epochs == case.epochs
    steps_per_epoch = -(-len(data.load("digits", None).train) // 128)
    assert outcome.train.steps == epochs * steps_per_epoch


def test_test_split_is_read_by_the_evaluation_alone(
    case: Case, strength: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted at the door: once for each operating point, and never while a loop runs (the door itself refuses)."""
    reads: list[str] = []

    def counting(name: str, root: Path | None) -> Any:
        reads.append(name)
        return load_test(name, root)

    monkeypatch.setattr(data, "load_test", counting)
    (cell,) = cells_of(case, (strength,))
    outcome = run_cell(cell, tmp_path)
    assert reads == ["digits"] * len(outcome.points)


def test_strength_zero_keeps_the_whole_network(case: Case, tmp_path: Path) -> None:
    (cell,) = cells_of(case, (0.0,))
    (point,) = run_cell(cell, tmp_path).points
    assert point.status == "done", point.failure
    assert point.kept == point.sizes
    assert point.cost is not None
    assert point.dense_cost is not None
    assert (point.cost.parameters, point.cost.macs) == (point.dense_cost.parameters, point.dense_cost.macs)


def test_seeds_are_paired_over_methods(
    case: Case, strength: float, outcome: Outcome, dense: dict[int, TrainRecord]
) -> None:
    assert outcome.train.data_order == dense[0].data_order
    network = networks.build(case.network, (1, 8, 8), 10)
    shape = case.create().shape(find_sites(network, torch.zeros(1, 1, 8, 8)), strength)
    if shape is None:  # another shape has other weights by its nature
        assert outcome.train.initial_weights == dense[0].initial_weights
    assert dense[1].initial_weights != dense[0].initial_weights
    assert dense[1].data_order != dense[0].data_order


def test_every_method_of_the_folder_is_here() -> None:
    assert {"dense", "thin-dense", "random", "magnitude", "targeted-dropout"} <= set(methods.available())
