"""Group lasso: groups that hold all of a unit, thresholds by their size, zeros that are exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import methods
from bench.compaction import find_sites
from methods.base import Phase, Site, StepContext
from methods.group_lasso import GroupLasso, grouped, row_norms

Network = tuple[nn.Module, list[Site]]
MakeContext = Callable[..., StepContext]


def attached(network: Network, context: StepContext, **config: Any) -> GroupLasso:
    method = methods.create("group-lasso", **config)
    assert isinstance(method, GroupLasso)
    context.phase = Phase("sparsify", 1.0)
    method.attach(*network, context)
    return method


def groups_of(network: nn.Module, layers: str) -> torch.Tensor:
    """One row per unit: all parameters that these layers have of it."""
    parts = [
        p.detach().reshape(p.shape[0], -1) for n in layers for p in network.get_submodule(n).parameters()
    ]
    return torch.cat(parts, dim=1)


def test_one_step_is_the_proximal_point_of_every_group(mlp: Network, make_context: MakeContext) -> None:
    """Weights and bias of a unit shrink by one factor: max(1 − ηλ√p/‖θ_g‖, 0)."""
    network, _ = mlp
    method = attached(mlp, make_context(0.5))
    method.context.learning_rate = 0.1
    before = groups_of(network, "2")
    assert before.shape == (10, 20 + 1)
    rest = network.get_parameter("4.weight").detach().clone()
    method.after_step()
    threshold = 0.1 * 0.5 * 21**0.5
    expected = torch.stack([g * max(0.0, 1 - threshold / float(g.norm())) for g in before])
    torch.testing.assert_close(groups_of(network, "2"), expected)
    assert torch.equal(network.get_parameter("4.weight"), rest)


def test_behind_a_norm_scale_and_shift_are_the_group(convnet: Network, make_context: MakeContext) -> None:
    """The rows in front of it, whose size means nothing, stay as they are."""
    network, _ = convnet
    with torch.no_grad():
        network.get_parameter("4.bias").copy_(torch.linspace(-1, 1, 12))
    method = attached(convnet, make_context(0.5))
    method.context.learning_rate = 0.2
    before, rows = groups_of(network, "4"), groups_of(network, "3")
    method.after_step()
    threshold = 0.2 * 0.5 * 2**0.5
    expected = torch.stack([g * max(0.0, 1 - threshold / float(g.norm())) for g in before])
    torch.testing.assert_close(groups_of(network, "4"), expected)
    assert torch.equal(groups_of(network, "3"), rows)


def test_where_the_scale_is_free_the_step_takes_no_length_away(
    convnet: Network, make_context: MakeContext
) -> None:
    """Units in front of a normalised reader, as the analysis finds them: directions change, the length does not, and
    neither does what the network computes where no unit goes."""
    network, _ = convnet
    sites = find_sites(network, torch.zeros(1, 1, 8, 8))
    assert [site.scale_free for site in sites] == [True, False]
    with torch.no_grad():
        network.get_parameter("1.weight").copy_(torch.tensor([0.05, *[1.0] * 7]))
    method = attached((network, sites), make_context(0.5))
    method.context.learning_rate = 0.2
    method.after_step()
    scales = network.get_parameter("1.weight").detach()
    assert scales[0] == 0
    assert bool((scales[1:] > 1).all())
    assert float(scales.norm()) == pytest.approx(8**0.5)


def test_a_unit_at_zero_is_off_and_the_last_of_a_layer_stays(
    convnet: Network, make_context: MakeContext
) -> None:
    network, _ = convnet
    method = attached(convnet, make_context(1.0))
    with torch.no_grad():
        network.get_parameter("4.weight").copy_(torch.linspace(0.5, 1.5, 12))
    norms = row_norms(method.groups["3"])
    method.context.learning_rate = float(norms.median()) / 2**0.5
    method.after_step()
    kept = method.plan(1.0).kept["3"]
    assert torch.equal(kept, norms > norms.median())
    outputs = network.eval()[:5](torch.randn(2, 1, 8, 8))
    assert torch.equal(outputs.abs().amax(dim=(0, 2, 3)) > 0, kept)
    largest = int(row_norms(method.groups["3"]).argmax())
    before = groups_of(network, "4")[largest]
    method.context.learning_rate = 100.0
    method.after_step()
    assert method.plan(1.0).kept["3"].nonzero().flatten().tolist() == [largest]
    assert torch.equal(groups_of(network, "4")[largest], before)


def test_penalty_only_before_fine_tuning_and_units_stay_off(
    mlp: Network,
    make_context: MakeContext,
    noise_batches: Callable[..., Any],
    train: Callable[..., None],
) -> None:
    method = attached(mlp, make_context(0.03, steps=80), finetune=0.5)
    found: dict[str, list[int]] = {"sparsify": [], "finetune": []}

    def note() -> None:
        units = sum(int((row_norms(group) > 0).sum()) for group in method.groups.values())
        found[method.context.phase.name].append(units)

    train(
        method,
        noise_batches((64,)),
        lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.9, weight_decay=1e-3),
        note,
    )
    assert 2 <= found["sparsify"][-1] < 25
    assert set(found["finetune"]) == {found["sparsify"][-1]}
    assert sum(int(kept.sum()) for kept in method.plan(0.03).kept.values()) == found["finetune"][-1]


def test_strength_zero_is_plain_training(mlp: Network, make_context: MakeContext) -> None:
    network, _ = mlp
    method = attached(mlp, make_context(0.0), finetune=0)
    method.context.learning_rate = 1.0
    with torch.no_grad():
        for parameter in network[0].parameters():
            parameter[3] = 0.0  # a unit that died on its own
    before = groups_of(network, "0").clone()
    method.after_step()
    assert torch.equal(groups_of(network, "0"), before)
    assert all(bool(kept.all()) for kept in method.plan(0.0).kept.values())


def test_the_steps_solve_the_group_lasso() -> None:
    """A linear model with one group per output against the optimality conditions of its convex problem:
    ∇E_g = −λ√p·θ_g/‖θ_g‖ where θ_g ≠ 0, and ‖∇E_g‖ ≤ λ√p where it is zero."""
    torch.manual_seed(0)
    inputs = torch.randn(300, 6, dtype=torch.float64)
    truth = torch.diag(torch.tensor([1.0, 0.6, 0.3, 0.1, 0.05, 0.0])).double()
    targets = inputs @ truth.T + 0.1 * torch.randn(300, 6, dtype=torch.float64)
    network = nn.Sequential(nn.Linear(6, 6, bias=False)).double()
    site = Site("0", 6, "inner", ("0",), (), ("0",), (), 1.0, 1.0)
    strength, rate = 0.08, 0.2
    context = StepContext(
        strength,
        1,
        1,
        300,
        torch.device("cpu"),
        torch.Generator(),
        nn.functional.mse_loss,
        Phase("sparsify", 1.0),
    )
    context.learning_rate = rate
    method = attached((network, [site]), context)
    weight = network[0].weight

    def gradient() -> torch.Tensor:
        weight.grad = None
        (0.5 * (network(inputs) - targets).square().sum(dim=1).mean()).backward()
        assert weight.grad is not None
        return weight.grad

    for _ in range(500):
        slope = gradient()
        with torch.no_grad():
            weight -= rate * slope
        method.after_step()
    slope, bound = gradient(), strength * 6**0.5
    zero = weight.norm(dim=1) == 0
    assert 0 < int(zero.sum()) < 6
    assert (slope[zero].norm(dim=1) <= bound).all()
    direction = weight[~zero] / weight[~zero].norm(dim=1, keepdim=True)
    torch.testing.assert_close(slope[~zero], (-bound * direction).detach(), rtol=0, atol=1e-8)


def test_each_end_has_its_own_part_of_the_group() -> None:
    """As in a block of squeeze-and-excitation, whose units end behind a norm and in a linear layer without one: rows in
    front of the norm mean nothing, and the others are all that there is."""
    network = nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(2, 6, 1))
    site = Site("0", 6, "inner", ("0", "2"), ("1",), ("1", "2"), (), 1.0, 1.0)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    found = [names[id(parameter)] for parameter in grouped(network, site)]
    assert found == ["1.weight", "1.bias", "2.weight", "2.bias"]


def test_refuses_to_fine_tune_for_the_whole_budget() -> None:
    with pytest.raises(ValueError, match="finetune"):
        methods.create("group-lasso", finetune=1.0)
