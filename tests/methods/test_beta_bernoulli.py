"""The gates of beta-Bernoulli dropout, their objective, and what they leave behind."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from scipy import integrate, special
from torch import nn

import methods
from methods import kumaraswamy
from methods.base import Batch, Site, StepContext
from methods.beta_bernoulli import BetaBernoulli, BetaBernoulliConfig, Posterior, relaxed_bernoulli
from methods.random_bits import logistic

Network = tuple[nn.Module, list[Site]]


def attached(
    network: Network, make_context: Callable[..., StepContext], strength: float = 1.0, **config: Any
) -> BetaBernoulli:
    """In its second phase."""
    method = BetaBernoulli(BetaBernoulliConfig(**config))
    method.attach(*network, make_context(strength=strength))
    for phase in method.phases(10):
        method.start_phase(phase)
    return method


def spread(method: BetaBernoulli) -> None:
    """Posteriors that differ, every third unit off."""
    with torch.no_grad():
        size = len(method.posterior.a_uc)
        method.posterior.a_uc.copy_(torch.linspace(-3, 3, size))
        method.posterior.a_uc[::3] = -9.0


def test_settings_are_checked() -> None:
    for bad in (
        {"pretrain": 1.0},
        {"threshold": 0.0},
        {"temperature": 0.0},
        {"prior_ratio": -1e-4},
        {"a_uc": 9.0},
    ):
        with pytest.raises(ValidationError):
            BetaBernoulliConfig(**bad)


@pytest.mark.parametrize("log_odds", [-4.0, -0.5, 0.0, 1.5])
@pytest.mark.parametrize("tau", [0.1, 0.7])
def test_mean_of_the_relaxed_bernoulli(log_odds: float, tau: float) -> None:
    """Simulation against the integral over logit u = t, which is logistic; and P(z > ½) = π exactly."""
    n = 400_000
    noise = logistic((n,), torch.Generator().manual_seed(1))
    z = relaxed_bernoulli(torch.tensor(log_odds), noise, tau).double()
    expected = integrate.quad(
        lambda t: special.expit((log_odds + t) / tau) * special.expit(t) * special.expit(-t),
        -40,
        40,
        limit=400,
    )[0]
    assert abs(z.mean().item() - expected) < 4 * z.std().item() / math.sqrt(n)
    pi = special.expit(log_odds)
    assert abs((z > 0.5).double().mean().item() - pi) < 4 * math.sqrt(pi * (1 - pi) / n)


def test_frequencies_of_the_gates_are_the_keep_probabilities() -> None:
    """P(z > ½) over both draws is E[π]: one π for a minibatch, one z for an image."""
    a_uc = torch.tensor([-6.0, -1.0, 0.5, 3.0])
    posterior = Posterior(a_uc, 0.1, 1e-3, torch.Generator().manual_seed(2))
    rounds = 5_000
    on = torch.stack([(posterior.draw(4).detach() > 0.5).float() for _ in range(rounds)])
    means = on.mean(dim=(0, 1))
    expected = posterior.expected().float()
    error = on.mean(dim=1).std(dim=0) / math.sqrt(rounds)
    assert ((means - expected).abs() < 4 * error).all()
    within = on.var(dim=1, correction=0).mean(dim=0)
    assert (within[1:3] > 0.01).all()  # images of a minibatch differ
    of_minibatches = on.mean(dim=1).var(dim=0)
    assert (of_minibatches > 2 * expected * (1 - expected) / 4 * 0.9)[
        1:3
    ].all()  # more than independent draws


def test_one_draw_serves_all_sites_and_every_forward_pass_draws_anew(
    mlp: Network, make_context: Callable[..., StepContext]
) -> None:
    method = attached(mlp, make_context)
    network, sites = mlp
    network.train()
    network(torch.randn(5, 64))
    assert method.placement is not None
    first, second = (method.placement.gates[site.name].value for site in sites)
    assert first.shape == (5, 20)
    assert second.shape == (5, 10)
    network(torch.randn(5, 64))
    assert not torch.equal(first, method.placement.gates["0"].value)
    network.eval()
    network(torch.randn(5, 64))
    fixed = method.by_site(method.posterior.fixed())
    for site in sites:
        assert torch.equal(method.placement.gates[site.name].value, fixed[site.name])


def test_gradient_through_the_gates_is_autograds(
    convnet: Network, make_context: Callable[..., StepContext]
) -> None:
    """The product's own backward pass, against the plain product."""
    network, _ = convnet
    method = attached(convnet, make_context)
    batch = Batch(torch.randn(37, 1, 8, 8), torch.randint(10, (37,)))
    twin = copy.deepcopy(network)
    for module in twin.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    network.train()
    method.context.generator.manual_seed(5)
    network(batch.inputs)  # the running statistics move here and not in the twin, which does not read them
    method.context.generator.manual_seed(5)
    method.training_step(batch)
    of_method = [method.posterior.a_uc.grad, method.posterior.b_uc.grad, network[0].weight.grad]

    method.posterior.zero_grad()
    method.context.generator.manual_seed(5)
    z = method.by_site(method.posterior.draw(37).T)
    x = batch.inputs
    for name, module in twin.train().named_children():
        x = module(x)
        if name in ("1", "4"):
            x = x * z[{"1": "0", "4": "3"}[name]].T[:, :, None, None]
    kl = sum(
        kumaraswamy.kl_to_beta(*kumaraswamy.shapes(a, b), 1e-4)
        for a, b in zip(method.posterior.a_uc, method.posterior.b_uc, strict=True)
    )
    (nn.functional.cross_entropy(x, batch.targets) + kl / 160).backward()
    expected = [method.posterior.a_uc.grad, method.posterior.b_uc.grad, twin[0].weight.grad]
    for one, other in zip(of_method, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_pretraining_knows_no_gates(mlp: Network, make_context: Callable[..., StepContext]) -> None:
    network, sites = mlp
    inputs = torch.randn(3, 64)
    before = network(inputs)
    method = BetaBernoulli()
    method.attach(network, sites, make_context(strength=1.0))
    method.start_phase(method.phases(10)[0])
    assert method.phases(10)[0].shared
    assert torch.equal(network.train()(inputs), before)
    assert method.penalty() is None
    assert method.parameter_groups() == []
    method.detach()
    assert torch.equal(network(inputs), before)


def test_groups_follow_the_paper(mlp: Network, make_context: Callable[..., StepContext]) -> None:
    (group,) = attached(mlp, make_context).parameter_groups()
    assert (group["lr"], group["optimizer"], group["weight_decay"]) == (1e-2, "adam", 0.0)
    assert sum(parameter.numel() for parameter in group["params"]) == 60


def test_starts_lower_without_normalisation(
    mlp: Network, convnet: Network, make_context: Callable[..., StepContext]
) -> None:
    assert torch.allclose(
        attached(mlp, make_context).posterior.expected().float(), torch.tensor(0.2385), atol=1e-4
    )
    assert torch.allclose(
        attached(convnet, make_context).posterior.expected().float(), torch.tensor(0.6802), atol=1e-4
    )
    given = attached(convnet, make_context, a_uc=-1.0).posterior.expected()
    assert torch.allclose(given.float(), torch.tensor(0.2385), atol=1e-4)


@pytest.mark.parametrize("kind", ["mlp", "convnet"])
def test_detach_leaves_what_evaluation_saw(
    kind: str, request: pytest.FixtureRequest, make_context: Callable[..., StepContext]
) -> None:
    network, sites = request.getfixturevalue(kind)
    method = attached((network, sites), make_context)
    spread(method)
    for site in sites:
        nn.init.normal_(network.get_submodule(site.ends[0]).bias)
    inputs = torch.randn(6, 1, 8, 8) if kind == "convnet" else torch.randn(6, 64)
    gated = network.eval()(inputs)
    names = [name for name, _ in network.named_parameters()]
    method.detach()
    torch.testing.assert_close(network(inputs), gated, rtol=1e-4, atol=1e-6)
    assert [name for name, _ in network.named_parameters()] == names
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    plan = method.plan(1.0)
    for site in sites:
        kept = plan.kept[site.name]
        assert 0 < int(kept.sum()) < site.size
        for end in site.ends:
            module = network.get_submodule(end)
            assert torch.equal(
                module.weight.flatten(1).any(1) if module.weight.dim() > 1 else module.weight != 0, kept
            )
            assert torch.equal(module.bias != 0, kept)
    with pytest.raises(ValueError, match="trained for strength"):
        method.plan(2.0)


def test_strength_zero_has_no_prior_and_no_threshold(
    mlp: Network, make_context: Callable[..., StepContext]
) -> None:
    method = attached(mlp, make_context, strength=0.0)
    spread(method)
    assert method.penalty() is None
    assert (method.posterior.fixed() > 0).all()
    method.detach()
    assert all(bool(kept.all()) for kept in method.plan(0.0).kept.values())


def test_penalty_is_the_scaled_kl_over_the_training_images(
    mlp: Network, make_context: Callable[..., StepContext]
) -> None:
    """30 units with KL = 7.050 each, N = 160."""
    penalty = attached(mlp, make_context, strength=2.0).penalty()
    assert penalty is not None
    assert penalty.item() == pytest.approx(2.0 * 30 * 7.050 / 160, rel=1e-4)


def test_prior_alone_closes_every_gate(mlp: Network, make_context: Callable[..., StepContext]) -> None:
    method = attached(mlp, make_context)
    optimiser = torch.optim.Adam(method.posterior.parameters(), lr=0.05)
    for _ in range(400):
        optimiser.zero_grad()
        penalty = method.penalty()
        assert penalty is not None
        penalty.backward()
        optimiser.step()
    assert not method.posterior.kept().any()


def test_state_survives_a_round_trip(mlp: Network, make_context: Callable[..., StepContext]) -> None:
    network, sites = mlp
    twin = copy.deepcopy(network)
    method = attached(mlp, make_context)
    spread(method)
    other = BetaBernoulli()
    other.attach(twin, sites, make_context(strength=1.0))
    other.load_state_dict({name: value for name, value in method.state_dict().items()})
    inputs = torch.randn(4, 64)
    assert torch.equal(network.eval()(inputs), twin.eval()(inputs))
    kept, held = method.plan(1.0).kept, other.plan(1.0).kept
    assert all(torch.equal(kept[name], held[name]) for name in kept)


def test_refuses_a_normalisation_that_no_gate_folds_into() -> None:
    method = methods.create("beta-bernoulli")
    for affine in (False, True):
        network = nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3, affine=affine), nn.Conv2d(3, 2, 1))
        site = Site("0", 3, "inner", ("0",), ("1",), ("1",), ("2",), 1.0, 1.0)
        reason = method.supports(network, [site])
        assert reason is None if affine else "scale and shift" in str(reason)
