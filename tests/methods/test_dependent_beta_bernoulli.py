"""The gates that depend on the image: their objective, their noise, and what they leave behind."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from scipy import integrate
from torch import nn

from bench.compaction import find_sites, masked_reference
from bench.training.thinning import take_away
from methods.base import Batch, Evaluation, Site, SparsityPlan, StepContext
from methods.dependent_beta_bernoulli import (
    CLIP,
    ETA,
    RHO,
    Dependence,
    DependentBetaBernoulli,
    DependentBetaBernoulliConfig,
    divergence,
)

Network = tuple[nn.Module, list[Site]]


def attached(
    network: Network, make_context: Callable[..., StepContext], strength: float = 1.0, **config: Any
) -> DependentBetaBernoulli:
    """In its last phase, every third unit taken away, with statistics and gates that differ."""
    method = DependentBetaBernoulli(DependentBetaBernoulliConfig(**config))
    method.attach(*network, make_context(strength=strength))
    *early, last = method.phases(12)
    for phase in early:
        method.start_phase(phase)
    with torch.no_grad():
        method.posterior.a_uc.copy_(torch.linspace(-2, 3, len(method.posterior.a_uc)))
        method.posterior.a_uc[::3] = -9.0
    method.context.phase = last
    kept = method.removable()
    if kept:
        kind = "mlp" if isinstance(network[0][0], nn.Linear) else "convnet"  # type: ignore[index]
        take_away(network[0], method, network[1], kept, inputs_of(kind, 1))
    method.start_phase(last)
    dependence, generator = method.dependence, torch.Generator().manual_seed(3)
    with torch.no_grad():
        for size, mean, variance, eta, g in zip(
            dependence.sizes,
            *map(dependence.parts, (dependence.mean, dependence.variance, dependence.eta, dependence.g)),
            strict=True,
        ):
            mean.copy_(torch.randn(size, generator=generator))
            variance.copy_(0.1 + torch.rand(size, generator=generator))
            eta.copy_(torch.linspace(-1, 1.5, size))
            g.copy_(torch.linspace(0.2, 2, size))
    return method


def inputs_of(kind: str, images: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(11)
    return torch.randn(images, *((1, 8, 8) if kind == "convnet" else (64,)), generator=generator)


def test_settings_are_checked() -> None:
    for bad in ({"dependent": 0.0}, {"pretrain": 0.6, "dependent": 0.4}):
        with pytest.raises(ValidationError):
            DependentBetaBernoulliConfig(**bad)
    phases = DependentBetaBernoulli().phases(12)
    assert [phase.name for phase in phases] == ["pretrain", "sparsify", "dependent"]
    assert sum(phase.fraction for phase in phases) == pytest.approx(1.0)


@pytest.mark.parametrize(("eta", "kappa"), [(1.0, 1.0), (0.0, RHO), (-2.0, 0.3), (4.0, 2.5)])
def test_kl_of_beta_is_the_integral(eta: float, kappa: float) -> None:
    def normal(x: float, mean: float, deviation: float) -> float:
        return -0.5 * ((x - mean) / deviation) ** 2 - math.log(deviation * math.sqrt(2 * math.pi))

    expected = integrate.quad(
        lambda x: math.exp(normal(x, eta, kappa)) * (normal(x, eta, kappa) - normal(x, 0, RHO)),
        eta - 12 * kappa,
        eta + 12 * kappa,
    )[0]
    kappa_uc = torch.tensor([math.log(math.expm1(kappa))], dtype=torch.float64)
    assert divergence(torch.full_like(kappa_uc, eta), kappa_uc).item() == pytest.approx(expected, abs=1e-8)


def test_gates_open_with_probability_phi() -> None:
    """Without the noise of β and with saturated statistics apart: P(z > ½) = φ of each image."""
    dependence = Dependence([2, 3], 0.1, torch.Generator().manual_seed(0))
    with torch.no_grad():
        dependence.kappa_uc.fill_(-30.0)
        dependence.eta.copy_(torch.tensor([9.0, 9.0, 0.3, 0.5, 0.9]))
        dependence.g.fill_(0.2)
    values = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    # The minibatch normalises by its own statistics, so that φ is known here.
    normalised = (values - values.mean(0)) / (values.var(0, correction=0) + 1e-5).sqrt()
    phi = (0.2 * normalised + dependence.eta[2:]).clamp(CLIP, 1 - CLIP).detach()
    rounds = 4000
    drawn = [dependence.draw(1, values, dependence.noise(8)).detach() for _ in range(rounds)]
    on = (torch.stack(drawn) > 0.5).float().mean(0)
    assert ((on - phi).abs() < 4.5 * (phi * (1 - phi) / rounds).sqrt() + 1e-4).all()


def test_noise_of_beta_is_shared_by_the_minibatch() -> None:
    dependence = Dependence([4], 0.1, torch.Generator().manual_seed(0))
    with torch.no_grad():
        dependence.eta.fill_(0.5)
        dependence.g.zero_()
    phi = dependence.noisy_phi(0, torch.randn(6, 4), dependence.noise(6))
    assert torch.equal(phi, phi[:1].expand(6, 4))
    assert not torch.equal(phi, dependence.noisy_phi(0, torch.randn(6, 4), dependence.noise(6)))
    assert torch.equal(dependence.phi(0, torch.randn(6, 4)), torch.full((6, 4), 0.5))


def test_running_statistics_of_a_site_move_with_its_own_units_alone() -> None:
    dependence = Dependence([2, 3], 0.1, torch.Generator().manual_seed(0))
    values = 3 + 2 * torch.randn(64, 3, generator=torch.Generator().manual_seed(1))
    dependence.draw(1, values, dependence.noise(64))
    expected = torch.cat([torch.zeros(2), 0.1 * values.mean(0)])
    torch.testing.assert_close(dependence.mean, expected)
    assert torch.equal(dependence.variance[:2], torch.ones(2))
    assert (dependence.variance[2:] > 1.1).all()


@pytest.mark.parametrize(("eta", "least", "most"), [(ETA, 0.2, 0.4), (10.0, 0.0, 0.0)])
def test_the_start_leaves_gates_a_gradient(eta: float, least: float, most: float) -> None:
    """For a quarter of the images φ lies between the ends of its clip at first; at η = 10, as the TensorFlow code has
    it, for none, and the data say nothing to the gates."""
    dependence = Dependence([2000], 0.1, torch.Generator().manual_seed(0))
    with torch.no_grad():
        dependence.eta.fill_(eta)
    values = torch.randn(64, 2000, generator=torch.Generator().manual_seed(1))
    dependence.noisy_phi(0, values, dependence.noise(64)).clamp(CLIP, 1 - CLIP).sum().backward()
    assert dependence.eta.grad is not None
    assert least <= dependence.eta.grad.mean().item() / 64 <= most


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 3, 3)])
def test_phi_is_float32_also_of_a_network_in_bf16(shape: tuple[int, ...]) -> None:
    """In bf16 the clip's upper edge is 1, and the log-odds there infinite."""
    dependence = Dependence([4], 0.1, torch.Generator().manual_seed(0))
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    with torch.no_grad():
        dependence.eta.copy_(torch.tensor([-3.0, 0.5, 1.0, 5.0]))
    with torch.autocast("cpu", torch.bfloat16):
        z = dependence.draw(0, values, dependence.noise(6))
    assert z.dtype == torch.float32
    assert z.isfinite().all()
    z.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in dependence.parameters())  # type: ignore[union-attr]


def test_a_single_image_is_normalised_by_the_running_statistics() -> None:
    dependence = Dependence([3], 0.1, torch.Generator().manual_seed(0))
    values = torch.tensor([[0.5, -1.0, 2.0]])
    noise = dependence.noise(1)
    expected = values / math.sqrt(1 + 1e-5) + noise.beta[0]
    torch.testing.assert_close(dependence.noisy_phi(0, values, noise), expected)
    assert not dependence.mean.any()


def test_statistic_is_the_mean_over_places_and_passes_no_gradient() -> None:
    dependence = Dependence([3], 0.1, torch.Generator())
    maps = torch.randn(5, 3, 4, 4, requires_grad=True)
    phi = dependence.phi(0, maps)
    torch.testing.assert_close(phi, dependence.phi(0, maps.mean((2, 3))))
    phi.sum().backward()
    assert maps.grad is None
    assert dependence.g.grad is not None


@pytest.mark.parametrize("kind", ["mlp", "convnet"])
def test_posterior_is_frozen_and_gradients_are_finite(
    kind: str, request: pytest.FixtureRequest, make_context: Callable[..., StepContext]
) -> None:
    network, sites = request.getfixturevalue(kind)
    method = attached((network, sites), make_context)
    (group,) = method.parameter_groups()
    assert {id(p) for p in group["params"]} == {id(p) for p in method.dependence.parameters()}
    network.train()
    method.training_step(Batch(inputs_of(kind, 32), torch.randint(10, (32,))))
    assert method.posterior.a_uc.grad is None
    for parameter in (*network.parameters(), *method.dependence.parameters()):
        if parameter.grad is not None:
            assert parameter.grad.isfinite().all()
    penalty = method.penalty()
    assert penalty is not None
    dependence = method.dependence
    assert dependence.sizes == tuple(site.size for site in method.sites)
    pairs = zip(dependence.parts(dependence.eta), dependence.parts(dependence.kappa_uc), strict=True)
    total = sum(divergence(eta, kappa_uc) for eta, kappa_uc in pairs)
    torch.testing.assert_close(penalty, total / method.context.train_size)


@pytest.mark.parametrize("kind", ["mlp", "convnet"])
def test_static_units_are_cut_out_before_the_dependent_stage(
    kind: str, request: pytest.FixtureRequest, make_context: Callable[..., StepContext]
) -> None:
    """Physically; what is left computes what the whole network does with those units off; and nothing of the first
    stage's gates stays behind, but for the posterior of the units that are left."""
    network, sites = request.getfixturevalue(kind)
    method = DependentBetaBernoulli()
    method.attach(network, sites, make_context(strength=1.0))
    for phase in method.phases(12)[:2]:
        method.start_phase(phase)
    assert not method.removable()
    with torch.no_grad():
        method.posterior.a_uc[::3] = -9.0
        method.posterior.b_uc.copy_(torch.linspace(0, 1, len(method.posterior.b_uc)))
    method.context.phase = method.phases(12)[2]
    kept, full = method.removable(), method.posterior
    plain = copy.deepcopy(network)
    found = take_away(network, method, sites, kept, inputs_of(kind, 1))
    assert [site.size for site in found] == [int(mask.sum()) for mask in kept.values()]
    assert sum(site.size for site in found) < sum(site.size for site in sites)
    for site, mask in zip(find_sites(network, inputs_of(kind, 1)), kept.values(), strict=True):
        assert len(network.get_submodule(site.producers[0]).weight) == int(mask.sum())
    masked = masked_reference(plain, SparsityPlan(kept=kept), inputs_of(kind, 1))
    torch.testing.assert_close(network.eval()(inputs_of(kind, 16)), masked(inputs_of(kind, 16)))
    left = torch.cat(list(kept.values()))
    assert torch.equal(method.posterior.a_uc, full.a_uc[left])
    assert torch.equal(method.posterior.b_uc, full.b_uc[left])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    method.start_phase(method.phases(12)[2])
    network.train()
    method.training_step(Batch(inputs_of(kind, 32), torch.randint(10, (32,))))
    assert method.placement is not None
    assert [gate.value.shape for gate in method.placement.gates.values()] == [(32, s.size) for s in found]


def test_a_site_without_any_unit_left_is_not_cut(
    mlp: Network, make_context: Callable[..., StepContext]
) -> None:
    method = DependentBetaBernoulli()
    method.attach(*mlp, make_context(strength=1.0))
    for phase in method.phases(12)[:2]:
        method.start_phase(phase)
    with torch.no_grad():
        method.posterior.a_uc[:20] = -9.0
    method.context.phase = method.phases(12)[2]
    assert list(method.removable()) == ["2"]


@pytest.mark.parametrize("kind", ["mlp", "convnet"])
def test_delivered_gates_are_those_of_evaluation(
    kind: str, request: pytest.FixtureRequest, make_context: Callable[..., StepContext]
) -> None:
    """E[π] folded into the weights and into slope and offset: the same logits."""
    network, _ = request.getfixturevalue(kind)
    method = attached(request.getfixturevalue(kind), make_context)
    sites = method.sites
    inputs = inputs_of(kind, 64)
    gated = network.eval()(inputs)
    assert method.placement is not None
    values = {name: gate.value for name, gate in method.placement.gates.items()}
    assert any(0 < int((value > 0).sum()) < value.numel() for value in values.values())
    method.detach()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    fixed = method.by_site(method.posterior.fixed())
    for site in sites:
        gate = method.input_gates()[site.name]
        expected = values[site.name]

        def multiply(
            module: nn.Module, given: Any, output: torch.Tensor, gate: nn.Module = gate
        ) -> torch.Tensor:
            z = gate(output)
            return output * z.reshape(*z.shape, *[1] * (output.dim() - 2))

        network.get_submodule(site.ends[0]).register_forward_hook(
            lambda module, given, output, gate=gate, site=site, expected=expected: torch.testing.assert_close(
                gate(output) * fixed[site.name], expected, rtol=1e-3, atol=1e-5
            )
        )
        network.get_submodule(site.ends[0]).register_forward_hook(multiply)
    torch.testing.assert_close(network(inputs), gated, rtol=1e-3, atol=1e-5)


def test_activity_is_counted_on_the_validation_split(
    mlp: Network, make_context: Callable[..., StepContext]
) -> None:
    network, _ = mlp
    method = attached(mlp, make_context)
    sites = method.sites
    inputs = inputs_of("mlp", 50)
    seen: list[dict[str, float]] = []
    clipped: list[float] = []

    def validate() -> Evaluation:
        network.eval()
        counts, at_clip = {site.name: 0.0 for site in sites}, 0.0
        for part in inputs.split(20):
            network(part)
            assert method.placement is not None
            for name, gate in method.placement.gates.items():
                counts[name] += float((gate.value > 0).sum()) / 50
                phi = gate.value / gate.static.draw(training=False, batch=1)  # type: ignore[attr-defined]
                at_clip += float(((phi < 1e-12) | (phi > 1 - 1e-6)).sum()) / 50
        seen.append(counts)
        clipped.append(at_clip / sum(site.size for site in sites))
        return Evaluation(1.0, 0.5)

    method.context.phase_steps = 5
    method.after_epoch(validate)
    assert not seen
    method.context.phase_step = 5
    method.after_epoch(validate)
    method.detach()
    plan = method.plan(1.0)
    assert plan.expected_activity == pytest.approx(seen[0])
    percent, _, rest = plan.notes[-1].partition("%")
    assert float(percent) == pytest.approx(100 * clipped[0], abs=0.2)
    assert rest == " of all φ are 0 or 1 on the validation split"
    for site in sites:
        assert 0 < plan.expected_activity[site.name] < site.size


def test_state_survives_a_round_trip(convnet: Network, make_context: Callable[..., StepContext]) -> None:
    network, _ = convnet
    method = attached(convnet, make_context)
    method.placement.remove()
    twin = copy.deepcopy(network)
    method._place()
    method.activity = {"0": 1.5}
    other = DependentBetaBernoulli()
    other.attach(twin, method.sites, make_context(strength=1.0))
    other.load_state_dict(method.state_dict())
    inputs = inputs_of("convnet", 8)
    assert torch.equal(network.eval()(inputs), twin.eval()(inputs))
    assert other.activity == {"0": 1.5}
    assert not other.posterior.a_uc.requires_grad


def test_strength_zero_has_no_dependent_gates(mlp: Network, make_context: Callable[..., StepContext]) -> None:
    method = attached(mlp, make_context, strength=0.0)
    assert not method.dependent
    method.detach()
    assert not method.input_gates()
    assert all(bool(kept.all()) for kept in method.plan(0.0).kept.values())
