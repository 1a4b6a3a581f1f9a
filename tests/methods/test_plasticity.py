"""The stages, the start, the grow rule and the hardening of neural plasticity networks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import methods
from bench import networks
from bench.compaction import compact, find_sites
from bench.training.optimizers import Optimizers
from bench.training.phases import plan_phases
from bench.training.recipe import Recipe
from methods.base import Batch, Evaluation, Phase, Site, SparsityPlan, StepContext
from methods.errors import BadConfig
from methods.plasticity import Plasticity

Network = tuple[nn.Module, list[Site]]
MakeContext = Callable[..., StepContext]
PLASTIC = Phase("plastic", 0.5)


def attached(network: Network, context: StepContext, **config: Any) -> Plasticity:
    method = methods.create("plasticity", **config)
    assert isinstance(method, Plasticity)
    method.attach(*network, context)
    return method


def active(method: Plasticity, site: str) -> list[int]:
    return (method.gates[site].location > 0).nonzero().flatten().tolist()


def close(method: Plasticity, site: str, unit: int) -> None:
    with torch.no_grad():
        method.gates[site].location[unit] = -0.01


def test_the_stages_are_those_of_the_paper(mlp: Network, make_context: MakeContext) -> None:
    context = make_context(strength=0.1)
    method = attached(mlp, context)
    planned = plan_phases(method.phases(500), 500)
    assert [(p.phase.name, p.first_epoch, p.epochs) for p in planned] == [
        ("pretrain", 0, 100),
        ("plastic", 100, 250),
        ("harden", 350, 150),
    ]
    assert planned[0].phase.shared  # plain training, as all units are active
    slopes, learning = [], []
    for phase in planned:
        context.phase = phase.phase
        slopes.append(method.k)
        learning.append(bool(method.parameter_groups()))
    assert slopes == [math.inf, 7.0, math.inf]
    assert learning == [False, True, False]
    assert not methods.create("plasticity", mode="expand").phases(500)[0].shared


def test_units_begin_at_three_or_minus_forty_over_k(mlp: Network, make_context: MakeContext) -> None:
    context = make_context(strength=0.1)
    context.phase = PLASTIC
    full = attached(mlp, context)
    for gate in full.gates.values():
        assert gate.probability().tolist() == pytest.approx([0.953] * gate.size, abs=0.02)
    small = attached(mlp, context, mode="expand", k=1.0)
    p = small.gates["0"].probability()
    assert p[:3].tolist() == pytest.approx([0.953] * 3, abs=0.005)
    assert (p[3:] < 1e-16).all()
    assert active(small, "0") == active(small, "2") == [0, 1, 2]
    half = attached(mlp, context, mode="expand", start_fraction=0.5)
    assert (len(active(half, "0")), len(active(half, "2"))) == (10, 5)


def test_the_start_on_lenet5_has_474_weights(make_context: MakeContext) -> None:
    """3-3-48-3 of the authors' demonstration: 99.89 % of 430,500 weights pruned."""
    network = networks.build("lenet5", (1, 28, 28), 10)
    example = torch.zeros(1, 1, 28, 28)
    sites = find_sites(network, example)
    method = attached((network, sites), make_context(strength=0.1), mode="expand")
    method.detach()
    small = compact(network, method.plan(0.1), example, example).network

    def weights(of: nn.Module) -> int:
        return sum(p.numel() for name, p in of.named_parameters() if name.endswith("weight"))

    assert weights(network) == 430_500
    assert weights(small) == 474
    assert round(100 * (1 - 474 / 430_500), 2) == 99.89


def test_the_price_of_a_unit_on_lenet5() -> None:
    """The figures that the docstring of the penalty compares with the released settings."""
    sites = find_sites(networks.build("lenet5", (1, 28, 28), 10), torch.zeros(1, 1, 28, 28))
    assert [site.parameters_per_unit for site in sites] == [1276, 8501, 811]


def test_growth_opens_the_next_units_when_the_loss_has_come_down(
    mlp: Network, make_context: MakeContext
) -> None:
    context = make_context(strength=0.1)
    method = attached(mlp, context, mode="expand", fill=3.0)
    method.consider_growth(2.0)
    assert active(method, "0") == active(method, "2") == [0, 1, 2, 3]
    assert method.gates["0"].location[3].item() == pytest.approx(3 / 7, abs=0.05)
    method.consider_growth(2.5)
    method.consider_growth(2.0)
    assert active(method, "0") == [0, 1, 2, 3]
    method.consider_growth(1.9)
    assert active(method, "0") == [0, 1, 2, 3, 4]


def test_a_dead_unit_neither_stops_growth_nor_is_opened_before_fresh_ones(
    mlp: Network, make_context: MakeContext
) -> None:
    method = attached(mlp, make_context(strength=0.1), mode="expand", fill=3.0, grow_per_event=3)
    close(method, "2", 1)
    method.consider_growth(2.0)
    assert active(method, "2") == [0, 2, 3, 4, 5]
    method.consider_growth(1.9)
    assert active(method, "2") == [0, 2, 3, 4, 5, 6, 7, 8]
    method.consider_growth(1.8)  # one fresh unit is left; then the dead one
    assert active(method, "2") == list(range(10))
    method.consider_growth(1.7)  # full width: nothing left to open
    assert active(method, "2") == list(range(10))
    assert len(active(method, "0")) == 3 + 4 * 3


def test_patience_ends_growth(mlp: Network, make_context: MakeContext) -> None:
    method = attached(mlp, make_context(strength=0.1), mode="expand", fill=3.0, patience=2)
    for loss in (2.0, 2.1, 2.1, 1.0):
        method.consider_growth(loss)
    assert active(method, "0") == [0, 1, 2, 3]


def test_growth_is_decided_after_epochs_of_stage_2_on_validation_loss_plus_penalty(
    mlp: Network, make_context: MakeContext
) -> None:
    context = make_context(strength=0.1)
    method = attached(mlp, context, mode="expand", fill=3.0)
    calls: list[int] = []

    def validate() -> Evaluation:
        calls.append(context.phase_step)
        return Evaluation(loss=1.5, accuracy=0.5)

    def end_epoch(phase: Phase, phase_step: int) -> int:
        context.phase, context.phase_step, context.phase_steps = phase, phase_step, 50
        method.after_epoch(validate)
        return len(active(method, "0"))

    assert end_epoch(Phase("start", 0.2), 10) == 3
    assert end_epoch(PLASTIC, 10) == 4
    assert method.best == pytest.approx(1.5 + 0.1 / context.train_size * 6 * 0.953, abs=1e-3)
    method.best = 2.0
    assert end_epoch(PLASTIC, 50) == 4  # nothing could learn any more
    assert end_epoch(Phase("harden", 0.3), 10) == 4
    assert calls == [10]


def test_growth_resumes_where_it_was(mlp: Network, make_context: MakeContext) -> None:
    one = attached(mlp, make_context(strength=0.1), mode="expand")
    one.consider_growth(2.0)
    one.consider_growth(2.2)
    close(one, "0", 3)
    other = attached(mlp, make_context(strength=0.1, seed=5), mode="expand")
    other.load_state_dict(one.state_dict())
    assert (other.best, other.stalled) == (2.0, 1)
    assert all(torch.equal(other.opened[name], mask) for name, mask in one.opened.items())
    assert torch.equal(other.gates["0"].location, one.gates["0"].location)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_hibernating_units_keep_their_weights_until_they_wake(
    optimizer: str,
    mlp: Network,
    make_context: MakeContext,
    noise_batches: Callable[[tuple[int, ...]], list[tuple[Tensor, Tensor]]],
) -> None:
    """Weight decay would have worn them down: under Adam in a few dozen steps."""
    network, sites = mlp
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    context = make_context(strength=0.1)
    method = attached((network, sites), context, mode="expand")
    context.phase = PLASTIC
    recipe = Recipe(epochs=1, optimizer=optimizer, learning_rate=1e-2, weight_decay=0.1)
    optimizers = Optimizers(network, method.parameter_groups(), recipe, 1.0)
    network.train()
    for _ in range(10):
        for inputs, targets in noise_batches((64,)):
            optimizers.zero_grad()
            method.training_step(Batch(inputs, targets))
            optimizers.step()
    assert torch.equal(network.get_parameter("0.weight")[3:], before["0.weight"][3:])
    assert torch.equal(network.get_parameter("2.weight")[:, 3:], before["2.weight"][:, 3:])
    assert not torch.equal(network.get_parameter("0.weight")[:3], before["0.weight"][:3])


def test_only_growth_wakes_hibernating_units(mlp: Network, make_context: MakeContext) -> None:
    """Their gates get the estimator's noise as all do. Left to it, a rate of 3 opens them within a few dozen steps."""
    network, sites = mlp
    context = make_context(strength=0.1)
    method = attached((network, sites), context, mode="expand", gate_rate=3.0, start_fraction=0.5)
    context.phase = PLASTIC
    optimizers = Optimizers(network, method.parameter_groups(), Recipe(epochs=1), 1.0)
    network.train()
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        batch = Batch(torch.randn(8, 64, generator=generator), torch.randint(10, (8,), generator=generator))
        optimizers.zero_grad()
        method.training_step(batch)
        optimizers.step()
        method.after_step()
        assert method.gates["0"].location[10:].tolist() == pytest.approx([-40 / 7] * 10)
    assert method.gates["0"].location[:10].std() > 1  # the noise was there
    method.consider_growth(1.0)
    method.after_step()
    assert method.opened["0"].tolist() == [True] * 11 + [False] * 9
    assert method.gates["0"].location[10].item() == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("name", ["plasticity", "l0-arm"])
def test_steep_gates_begin_where_they_are_meant_to(
    name: str, mlp: Network, make_context: MakeContext
) -> None:
    context = make_context(strength=0.1)
    context.phase = PLASTIC
    method = methods.create(name, k=1000.0)
    method.attach(*mlp, context)
    for gate in method.gates.values():  # type: ignore[attr-defined]
        assert gate.probability().min() > 0.85


def test_hardening_keeps_the_units_above_zero_as_they_are(mlp: Network, make_context: MakeContext) -> None:
    network, sites = mlp
    context = make_context(strength=0.1)
    method = attached((network, sites), context)
    with torch.no_grad():
        method.gates["0"].location.copy_(torch.linspace(-1, 1, 20))
        method.gates["2"].location.fill_(1.0)
    weight = network.get_parameter("0.weight").detach().clone()
    context.phase = Phase("harden", 0.3)
    inputs = torch.randn(4, 64)
    network.train()
    training = network(inputs)
    network.eval()
    assert torch.equal(training, network(inputs))  # no noise, no scale
    method.detach()
    plan = method.plan(0.1)
    assert torch.equal(plan.kept["0"], torch.linspace(-1, 1, 20) > 0)
    assert plan.kept["2"].all()
    assert torch.equal(network.get_parameter("0.weight"), weight * plan.kept["0"].unsqueeze(1))
    assert plan.notes == ("8 of 30 gates hardened while .05 < π < .95; 30 were ever open",)


def test_strength_zero_keeps_everything_also_in_expansion(mlp: Network, make_context: MakeContext) -> None:
    method = attached(mlp, make_context(strength=0.0), mode="expand")
    context = method.context
    context.phase = PLASTIC
    assert method.after_epoch(lambda: pytest.fail("nothing is to be decided")) is None
    method.detach()
    assert method.plan(0.0) == SparsityPlan()


def test_bad_settings_are_refused(mlp: Network, make_context: MakeContext) -> None:
    for config in (
        {"k": 0},
        {"k": -1},
        {"pretrain": 0.6, "harden": 0.4},
        {"start_units": 0},
        {"mode": "shrink"},
    ):
        with pytest.raises(BadConfig):
            methods.create("plasticity", **config)


def test_growth_from_more_than_the_full_width_is_refused(mlp: Network) -> None:
    wide = methods.create("plasticity", mode="expand", start_units=11)
    assert "2 has 10 units at full width" in str(wide.supports(*mlp))
    assert methods.create("plasticity", mode="expand", start_units=10).supports(*mlp) is None
    assert methods.create("plasticity", start_units=11).supports(*mlp) is None
