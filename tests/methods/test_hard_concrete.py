"""Hard-concrete gates against sampling and numerical integration, and the L0 penalty against autograd and by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

import methods
from methods.base import Batch, Site, StepContext
from methods.hard_concrete import BETA, GAMMA, LOG_ALPHA_RANGE, ZETA, HardConcrete, HardConcreteGate
from methods.l0_penalty import L0Gate, L0Method, expected_weights

Network = tuple[nn.Module, list[Site]]
MakeContext = Callable[..., StepContext]
LOG_ALPHA = torch.tensor([-4.0, -2.5, -1.0, 0.0, 1.5, 4.0])
NAMES = ("hard-concrete", "l0-arm", "plasticity")


def gate_at(log_alpha: torch.Tensor) -> HardConcreteGate:
    return HardConcreteGate(log_alpha.clone(), torch.Generator().manual_seed(0))


def attached(network: Network, context: StepContext, name: str = "hard-concrete") -> L0Method:
    method = methods.create(name)
    assert isinstance(method, L0Method)
    method.attach(*network, context)
    return method


@torch.no_grad()
def test_the_probability_of_not_zero_is_that_of_samples() -> None:
    copies = 100_000
    gate = gate_at(LOG_ALPHA.repeat(copies))
    z = gate.draw(training=True, batch=1).view(copies, -1)
    p = gate_at(LOG_ALPHA).probability()
    assert (((z != 0).double().mean(dim=0) - p).abs() < 4 * (p * (1 - p) / copies).sqrt()).all()
    # By the symmetry of s about log α = 0, z is 1 as often as a gate at −log α is 0.
    ones = 1 - gate_at(-LOG_ALPHA).probability()
    assert (((z == 1).double().mean(dim=0) - ones).abs() < 4 * (ones * (1 - ones) / copies).sqrt()).all()
    assert (z >= 0).all()
    assert (z <= 1).all()


def test_the_mean_gate_and_its_gradient_are_those_of_an_integral() -> None:
    """E[z] = ∫ z(u) du on a fine grid; the gradient of E[z] by differences of that integral, against the
    gradient that goes through samples."""
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000

    def mean(log_alpha: float) -> float:
        s = torch.sigmoid((torch.log(u) - torch.log1p(-u) + log_alpha) / BETA)
        return float((s * (ZETA - GAMMA) + GAMMA).clamp(0, 1).mean())

    copies = 200_000
    gate = gate_at(LOG_ALPHA.repeat(copies))
    z = gate.draw(training=True, batch=1)
    (gradient,) = torch.autograd.grad(z.sum(), gate.location)
    z, gradient = z.detach().view(copies, -1).double(), gradient.view(copies, -1).double()
    for at, log_alpha in enumerate(LOG_ALPHA.tolist()):
        slope = (mean(log_alpha + 1e-3) - mean(log_alpha - 1e-3)) / 2e-3
        assert abs(float(z[:, at].mean()) - mean(log_alpha)) < 4 * float(z[:, at].std()) / math.sqrt(copies)
        error = float(gradient[:, at].std()) / math.sqrt(copies)
        assert abs(float(gradient[:, at].mean()) - slope) < 4 * error + 1e-4


@torch.no_grad()
def test_test_time_gate() -> None:
    z = gate_at(LOG_ALPHA).draw(training=False, batch=1)
    expected = [min(1.0, max(0.0, 1.2 / (1 + math.exp(-a)) - 0.1)) for a in LOG_ALPHA.tolist()]
    assert z.tolist() == pytest.approx(expected, abs=1e-6)
    assert z[:2].tolist() == [0, 0]  # closed below log α = −log 11 = −2.398
    assert z[3] == pytest.approx(0.5)
    assert z[5] == 1  # fully open above log α = log 11
    edge = gate_at(torch.tensor([-math.log(11) - 1e-3, -math.log(11) + 1e-3])).draw(False, 1)
    assert edge[0] == 0
    assert edge[1] > 0


def test_golden_probabilities() -> None:
    """log α = 0: σ(β log 11) = .8318; the bounds of log α keep P(z ≠ 0) within .047 and .998."""
    p = gate_at(torch.tensor([0.0, *LOG_ALPHA_RANGE])).probability()
    assert p.tolist() == pytest.approx(
        [
            11 ** (2 / 3) / (1 + 11 ** (2 / 3)),
            *(1 / (1 + math.exp(-a) / 11 ** (2 / 3)) for a in LOG_ALPHA_RANGE),
        ]
    )


def test_log_alpha_is_clamped(mlp: Network, make_context: MakeContext) -> None:
    method = attached(mlp, make_context(strength=0.1))
    with torch.no_grad():
        for gate in method.gates.values():
            gate.location.copy_(torch.linspace(-9, 9, gate.size))
    method.after_step()
    for gate in method.gates.values():
        values = gate.location.detach()
        assert (float(values.min()), float(values.max())) == pytest.approx(LOG_ALPHA_RANGE)


@pytest.mark.parametrize("name", NAMES)
def test_the_penalty_is_lambda_over_n_times_the_expected_weights(
    name: str, mlp: Network, make_context: MakeContext
) -> None:
    """Its gradient against central differences in float64, and against the closed forms."""
    network, sites = mlp
    sites = [
        Site(s.name, s.size, s.kind, s.producers, s.norms, s.ends, s.readers, cost, 1.0)
        for s, cost in zip(sites, (76.0, 31.0), strict=True)
    ]
    context = make_context(strength=0.3)
    method = attached((network, sites), context, name)
    context.phase = method.phases(10)[-2 if name == "plasticity" else 0]
    for gate in method.gates.values():
        gate.location.data = torch.linspace(-0.4, 0.5, gate.size, dtype=torch.float64)
    penalty = method.penalty()
    assert penalty is not None
    penalty.backward()
    each = {"0": 76.0, "2": 31.0}
    by_hand = sum(each[n] * float(p) for n, g in method.gates.items() for p in g.probability().detach())
    assert float(penalty.detach()) == pytest.approx(0.3 / context.train_size * by_hand)
    for site, gate in method.gates.items():
        p = gate.probability().detach()
        slope = p * (1 - p) * (1 if name == "hard-concrete" else 7)
        expected = 0.3 / context.train_size * each[site] * slope
        assert gate.location.grad is not None
        assert torch.allclose(gate.location.grad, expected)
        step = 1e-6
        with torch.no_grad():
            for j in range(gate.size):
                around = []
                for sign in (1, -1):
                    gate.location[j] += sign * step
                    around.append(float(0.3 / context.train_size * expected_weights(method.gates, sites)))
                    gate.location[j] -= sign * step
                difference = (around[0] - around[1]) / (2 * step)
                assert difference == pytest.approx(float(gate.location.grad[j]), rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["mlp", "convnet"])
def test_folding_leaves_what_the_gates_computed(
    name: str, kind: str, request: pytest.FixtureRequest, make_context: MakeContext
) -> None:
    """The plain network after `detach` gives the logits of the gated one in evaluation mode; closed units are off."""
    network, sites = request.getfixturevalue(kind)
    network.double()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-1, 1)
    method = attached((network, sites), make_context(strength=0.1), name)
    gates = method.gates
    for gate in gates.values():
        gate.location.data = torch.linspace(-5, 5, gate.size, dtype=torch.float64)
    network.eval()
    inputs = torch.randn(5, 64, dtype=torch.float64) if kind == "mlp" else torch.randn(5, 1, 8, 8).double()
    gated = network(inputs)
    method.detach()
    assert torch.allclose(network(inputs), gated, rtol=0, atol=1e-12)
    kept = method.plan(0.1).kept
    for site in sites:
        assert 0 < int(kept[site.name].sum()) < site.size
        for layer in site.norms or site.producers:
            for parameter in network.get_submodule(layer).parameters():
                assert not parameter[~kept[site.name]].any()


@pytest.mark.parametrize("name", NAMES)
def test_strength_zero_trains_as_dense_does(name: str, mlp: Network, make_context: MakeContext) -> None:
    network, sites = mlp
    method = attached((network, sites), make_context(strength=0.0), name)
    assert method.parameter_groups() == []
    assert method.penalty() is None
    batch = Batch(torch.randn(16, 64), torch.arange(16) % 10)
    method.training_step(batch)
    given = [p.grad for p in network.parameters()]
    network.zero_grad()
    nn.functional.cross_entropy(network(batch.inputs), batch.targets).backward()
    assert all(torch.equal(a, p.grad) for a, p in zip(given, network.parameters(), strict=True))
    method.detach()
    assert method.plan(0.0).kept == {}


def test_a_gate_that_cannot_be_folded_is_refused_before_training() -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, affine=False), nn.Flatten(), nn.Linear(4, 2)
    )
    site = Site("0", 4, "inner", ("0",), ("1",), ("1",), ("3",), 1.0, 1.0)
    assert "1 normalises without scale" in str(methods.create("hard-concrete").supports(network, [site]))


def test_another_strength_is_refused(mlp: Network, make_context: MakeContext) -> None:
    method = attached(mlp, make_context(strength=0.1))
    method.detach()
    with pytest.raises(ValueError, match=r"not 0\.2"):
        method.plan(0.2)


def test_every_gate_is_new_in_each_pass_from_the_generator_of_the_context(
    mlp: Network, make_context: MakeContext
) -> None:
    network, _ = mlp
    seen = []
    for seed in (1, 1, 2):
        torch.rand(2)
        method = attached(mlp, make_context(strength=0.1, seed=seed))
        assert isinstance(method, HardConcrete)
        network.train()
        network(torch.zeros(3, 64))
        first = method.gates["0"].value.detach()
        network(torch.zeros(3, 64))
        assert not torch.equal(first, method.gates["0"].value)
        seen.append(first)
        method._placement.remove()
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


def test_the_base_gate_says_what_is_missing() -> None:
    with pytest.raises(NotImplementedError):
        L0Gate(3).probability()
