"""The rules of targeted dropout and the mistakes that other implementations made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import methods
from methods.base import Site, StepContext
from methods.masks import FunctionalMask
from methods.targeted_dropout import TargetedDropout, smallest_per_row

Network = tuple[nn.Module, list[Site]]
MakeContext = Callable[..., StepContext]


def attached(network: Network, context: StepContext, **config: Any) -> TargetedDropout:
    method = methods.create("targeted-dropout", **config)
    assert isinstance(method, TargetedDropout)
    method.attach(*network, context)
    return method


def seen(network: nn.Module, layer: str, name: str = "weight") -> Tensor:
    """The parameter as the layer computes with it."""
    return getattr(network.get_submodule(layer), name).detach().clone()


def test_defaults_are_those_of_the_paper_for_the_granularity() -> None:
    def rates(**config: Any) -> tuple[float, float]:
        resolved = methods.create("targeted-dropout", **config).config
        return resolved.drop_rate, resolved.targeted_fraction

    assert rates() == rates(granularity="unit") == (0.90, 0.75)
    assert rates(granularity="weight") == (0.66, 0.75)
    assert rates(granularity="weight", drop_rate=0.5) == (0.5, 0.75)


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.5, 0.75, 0.9])
def test_exactly_the_floor_per_filter_also_with_ties(fraction: float) -> None:
    weight = torch.randn(6, 3, 3, 3)
    weight[2] = 0.0
    weight[3] = weight[3].sign()
    chosen = smallest_per_row(weight, fraction)
    assert chosen.shape == weight.shape
    assert chosen.flatten(1).sum(dim=1).tolist() == [int(fraction * 27)] * 6


@pytest.mark.parametrize("scale", [1.0, 1e-42, 1e38])
def test_bits_of_floats_rank_as_the_floats_do(scale: float) -> None:
    """Denormal, huge and both zeros among them: the choice is that of double precision, which is ranked as floats."""
    weight = torch.randn(40, 31, generator=torch.Generator().manual_seed(0)) * scale
    weight[::2, 3], weight[::3, 5], weight[::2, 7] = 0.0, -0.0, float("inf")
    assert torch.equal(smallest_per_row(weight, 0.6), smallest_per_row(weight.double(), 0.6))


def test_weights_are_ranked_within_the_row_of_an_output_unit() -> None:
    weight = torch.tensor([[1.0, -2.0, -3.0, 4.0], [-40.0, 30.0, 20.0, -10.0]])
    assert smallest_per_row(weight, 0.5).tolist() == [[True, True, False, False], [False, False, True, True]]


def test_training_keeps_one_minus_gamma_alpha_of_the_weights(mlp: Network, make_context: MakeContext) -> None:
    network, _ = mlp
    attached(mlp, make_context(), granularity="weight", drop_rate=0.66, targeted_fraction=0.75)
    network.train()
    kept = []
    for _ in range(200):
        network(torch.zeros(1, 64))
        kept.append((seen(network, "0") != 0).float().mean())
    # 1280 weights, 200 draws: the standard error is about 0.001.
    assert torch.stack(kept).mean() == pytest.approx(1 - 0.75 * 0.66, abs=0.005)


def test_noise_hits_candidates_only_and_is_not_rescaled(mlp: Network, make_context: MakeContext) -> None:
    network, _ = mlp
    plain = seen(network, "0")
    attached(mlp, make_context(), granularity="weight", drop_rate=0.5, targeted_fraction=0.5)
    network.train()
    candidates = smallest_per_row(plain, 0.5)
    draws = []
    for _ in range(20):
        network(torch.zeros(1, 64))
        weight = seen(network, "0")
        assert torch.equal(weight[~candidates], plain[~candidates])
        assert torch.equal(weight[weight != 0], plain[weight != 0])
        draws.append(weight == 0)
    assert torch.equal(torch.stack(draws).any(dim=0), candidates)
    assert not torch.equal(draws[0], draws[1])


def test_one_draw_serves_the_whole_minibatch(mlp: Network, make_context: MakeContext) -> None:
    network, _ = mlp
    attached(mlp, make_context())
    network.train()
    outputs = network(torch.ones(5, 64))
    torch.testing.assert_close(outputs, outputs[:1].expand_as(outputs))  # rows round differently on some CPUs
    assert not torch.equal(network(torch.ones(5, 64)), outputs)


def test_dropped_weights_get_no_gradient(mlp: Network, make_context: MakeContext) -> None:
    network, _ = mlp
    attached(mlp, make_context(), granularity="weight", drop_rate=0.5)
    network.train()
    network(torch.rand(32, 64)).square().sum().backward()
    parameter = dict(network.named_parameters())["0.parametrizations.weight.original"]
    assert parameter.grad is not None
    dropped = seen(network, "0") == 0
    assert dropped.any()
    assert not parameter.grad[dropped].any()
    assert parameter.grad[~dropped].any()


@pytest.mark.parametrize("granularity", ["weight", "unit"])
def test_parameters_are_never_overwritten(
    granularity: str, convnet: Network, make_context: MakeContext
) -> None:
    network, _ = convnet
    before = [parameter.detach().clone() for parameter in network.parameters()]
    owners = [id(parameter) for parameter in network.parameters()]
    names = list(network.state_dict())
    method = attached(convnet, make_context(), granularity=granularity)
    for mode in (True, False):
        network.train(mode)
        network(torch.randn(4, 1, 8, 8))
    assert set(map(id, network.parameters())) == set(owners)
    method.detach()
    assert [id(parameter) for parameter in network.parameters()] == owners
    assert all(torch.equal(*pair) for pair in zip(network.parameters(), before, strict=True))
    # Nor is anything else left behind.
    assert list(network.state_dict()) == names
    assert not any(parametrize.is_parametrized(module) for module in network.modules())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in network.modules())


def test_weight_decay_still_reaches_a_dropped_weight(mlp: Network, make_context: MakeContext) -> None:
    network, _ = mlp
    plain = seen(network, "0")
    method = attached(mlp, make_context(), granularity="weight", drop_rate=1.0, targeted_fraction=0.5)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1, weight_decay=0.5)
    network.train()
    network(torch.rand(8, 64)).sum().backward()
    optimiser.step()
    method.detach()
    dropped = smallest_per_row(plain, 0.5)
    torch.testing.assert_close(seen(network, "0")[dropped], plain[dropped] * (1 - 0.1 * 0.5))


@pytest.mark.parametrize("granularity", ["weight", "unit"])
def test_evaluation_is_deterministic_and_without_the_candidates(
    granularity: str, mlp: Network, make_context: MakeContext
) -> None:
    network, sites = mlp
    context = make_context()
    method = attached(mlp, context, granularity=granularity, targeted_fraction=0.75)
    network.eval()
    inputs = torch.randn(4, 64)
    state = context.generator.get_state()
    outputs = network(inputs)
    assert torch.equal(outputs, network(inputs))
    assert torch.equal(state, context.generator.get_state())
    for site in sites:
        removed = 0.75 if granularity == "weight" else int(0.75 * site.size) / site.size
        assert (seen(network, site.name) == 0).float().mean() == pytest.approx(removed)
    # The plan at the targeted fraction is the network that evaluation mode showed.
    method.detach()
    plan = method.plan(0.75)
    with torch.no_grad():
        for name, mask in plan.weight_masks.items():
            network.get_parameter(name).mul_(mask)
        for name, kept in plan.kept.items():
            for parameter in network.get_submodule(name).parameters():
                parameter[~kept] = 0.0
    assert torch.equal(network(inputs), outputs)


def test_a_unit_is_dropped_whole_with_bias_and_norm(convnet: Network, make_context: MakeContext) -> None:
    network, _ = convnet
    for norm in ("1", "4"):
        nn.init.uniform_(network.get_submodule(norm).bias, 0.5, 1.0)
    norms = seen(network, "3").flatten(1).norm(dim=1)
    attached(convnet, make_context(), drop_rate=0.5, targeted_fraction=0.5)
    network.train()
    outputs: list[Tensor] = []
    network.get_submodule("4").register_forward_hook(lambda *call: outputs.append(call[2]))
    dropped_at = torch.zeros(12)
    for _ in range(60):
        network(torch.randn(4, 1, 8, 8))
        off = seen(network, "3").flatten(1).abs().sum(dim=1) == 0
        assert torch.equal(seen(network, "3", "bias") == 0, off)
        assert torch.equal(seen(network, "4") == 0, off)
        assert torch.equal(seen(network, "4", "bias") == 0, off)
        assert torch.equal(outputs[-1].abs().amax(dim=(0, 2, 3)) == 0, off)
        dropped_at += off
    candidates = norms.argsort()[:6]
    others = norms.argsort()[6:]
    assert not dropped_at[others].any()
    # 60 draws of a fair coin: six standard deviations are 23.
    assert ((dropped_at[candidates] - 30).abs() < 23).all()


def test_noise_per_weight_leaves_part_of_a_candidate_unit(mlp: Network, make_context: MakeContext) -> None:
    network, _ = mlp
    norms = seen(network, "0").norm(dim=1)
    attached(mlp, make_context(), unit_noise="weight", drop_rate=0.5, targeted_fraction=0.5)
    network.train()
    network(torch.zeros(1, 64))
    zeros = (seen(network, "0") == 0).sum(dim=1)
    candidates = norms.argsort()[:10]
    assert ((zeros[candidates] > 10) & (zeros[candidates] < 54)).all()
    assert zeros.sum() == zeros[candidates].sum()
    assert seen(network, "0", "bias").all()
    network.eval()
    network(torch.zeros(1, 64))
    assert not seen(network, "0")[candidates].any()
    assert not seen(network, "0", "bias")[candidates].any()


def test_units_coupled_over_producers_share_rank_and_draw(make_context: MakeContext) -> None:
    network = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 6))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([1.0, 1, 1, 9, 9, 9]).diag()[:, :4] + 1e-3)
        network[1].weight.copy_(torch.tensor([9.0, 9, 1, 1, 1, 9]).diag())
    stream = Site("0", 6, "stream", ("0", "1"), (), ("0", "1"), (), 1.0, 1.0)
    method = attached((network, [stream]), make_context(), drop_rate=1.0, targeted_fraction=0.4)
    network.train()
    network(torch.ones(1, 4))
    for layer in ("0", "1"):
        off = (seen(network, layer) == 0).all(dim=1)
        assert off.tolist() == [False, False, True, False, True, False]
    method.detach()
    assert (~method.plan(0.4).kept["0"]).nonzero().flatten().tolist() == [2, 4]


def test_ramp_values(mlp: Network, make_context: MakeContext) -> None:
    method = attached(
        mlp, make_context(steps=1000), ramp=True, granularity="weight", drop_rate=0.8, targeted_fraction=0.5
    )
    expected = {
        0: (0, 0),
        100: (0.475 / 2, 0.2),
        200: (0.475, 0.4),
        300: (0.4875, 0.6),
        400: (0.5, 0.8),
        999: (0.5, 0.8),
    }
    for step, rates in expected.items():
        assert method.ramp_at(step) == pytest.approx(rates)


def test_the_ramp_follows_the_step_in_training_and_evaluation(
    mlp: Network, make_context: MakeContext
) -> None:
    network, _ = mlp
    context = make_context(steps=1000)
    attached(mlp, context, ramp=True, granularity="weight", drop_rate=1.0, targeted_fraction=0.5)
    for step, zeros in ((0, 0), (200, 30), (400, 32)):
        context.step = step
        network.eval()
        network(torch.zeros(1, 64))
        assert ((seen(network, "0") == 0).sum(dim=1) == zeros).all()
    network.train()
    context.step = 0
    network(torch.zeros(1, 64))
    assert (seen(network, "0") != 0).all()


@pytest.mark.parametrize(("strength", "removed"), [(0.0, 0.0), (0.3, 0.5), (0.5, 0.5), (0.8, 0.8)])
def test_plan_removes_at_least_the_targeted_fraction(
    strength: float, removed: float, mlp: Network, make_context: MakeContext
) -> None:
    for granularity in ("unit", "weight"):
        method = attached(mlp, make_context(), granularity=granularity, targeted_fraction=0.5)
        method.detach()
        plan = method.plan(strength)
        if granularity == "unit":
            assert {name: int((~kept).sum()) for name, kept in plan.kept.items()} == {
                "0": int(removed * 20),
                "2": int(removed * 10),
            }
        else:
            assert (plan.weight_masks["0.weight"].logical_not().sum(dim=1) == int(removed * 64)).all()
            assert set(plan.weight_masks) == {"0.weight", "2.weight"}
        assert bool(plan.notes) == (0 < strength < 0.5)


def test_noise_is_that_of_the_context_alone(mlp: Network, make_context: MakeContext) -> None:
    network, _ = mlp
    outputs = []
    for seed in (1, 1, 2):
        torch.rand(3)  # the global stream must not matter
        method = attached(mlp, make_context(seed=seed))
        network.train()
        outputs.append(network(torch.ones(2, 64)))
        method.detach()
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_a_functional_mask_leaves_the_module_as_it_was() -> None:
    layer = nn.Linear(3, 2)
    kind, names = type(layer), list(layer.state_dict())
    masks = [FunctionalMask(layer, name) for name in ("weight", "bias")]
    for mask in masks:
        mask.remove()
    assert type(layer) is kind
    assert list(layer.state_dict()) == names
    assert not hasattr(layer, "parametrizations")


def test_a_functional_mask_keeps_the_layout_in_memory() -> None:
    """Of convolutions with one input channel too, whose product by a mask has other strides."""
    convolution = nn.Conv2d(1, 4, 3).to(memory_format=torch.channels_last)
    strides = convolution.weight.stride()
    mask = FunctionalMask(convolution, "weight")
    mask.kept = torch.rand(4, 1, 3, 3) < 0.5
    assert convolution.weight.stride() == strides
    assert convolution(torch.randn(2, 1, 8, 8)).is_contiguous(memory_format=torch.channels_last)
    convolution.weight.sum().backward()
    assert torch.equal(mask.parameter.grad, mask.kept.float())
